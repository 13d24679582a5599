"""What it means: numbers from the records of a run, simulated or measured."""
