"""The protocol: which points are measured, how often, and the rows and provenance that they become."""
