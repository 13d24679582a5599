"""The questions asked of the simulator, each a module.

What happens (`run`), which policy is better (`compare`), how much a cluster takes (`capacity`), which cluster
to take (`recommend`), how sure that is (`replications`), and all of that many times (`sweep`).
"""
