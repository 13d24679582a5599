"""Speculative decoding: several tokens in one step of a sequence."""
