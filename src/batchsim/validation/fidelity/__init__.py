"""Measured runs of real engines, predicted from operator profiles of their GPU."""
