"""Traces written in the formats of others, with a sentence for each thing that a format cannot carry."""
