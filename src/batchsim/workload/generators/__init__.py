"""Made-up workloads: arrival processes and length laws, and the BurstGPT-like trace that ships."""
