"""The simulator against measurements of real engines and GPUs, one package per kind of measurement."""
