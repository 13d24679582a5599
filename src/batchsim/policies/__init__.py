"""What is chosen: who is next, how many, what goes in, which replica; and presets, the named combinations."""
