"""A trace served in real time under the simulator's policies, and the measured run that it leaves."""
