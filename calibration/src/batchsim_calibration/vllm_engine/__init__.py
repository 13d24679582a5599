"""vLLM itself: its engine driven step by step, measured at the points of a grid, and served a trace."""
