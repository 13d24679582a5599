"""Runs that `calibration/` served in real time, simulated again: logic, latency model, and the whole."""
