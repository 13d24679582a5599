"""The model that runs: its shapes, its attention and KV cache, one forward pass, and the clocks around it."""
