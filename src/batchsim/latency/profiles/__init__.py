"""Operators that others measured: readers of their tables, and latency models made of them."""
