"""Runs in the files of benchmarks of serving engines, written and read."""
