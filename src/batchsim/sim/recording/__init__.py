"""What processes write down while they run: columns, read once, after the run."""
