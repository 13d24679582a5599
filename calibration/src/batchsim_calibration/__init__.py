"""Measure how long a language model's passes take, and serve a trace with it under batchsim's policies."""
