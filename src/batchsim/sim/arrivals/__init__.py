"""Who brings requests, and when: sources, clients that wait for answers, the front end before an engine."""
