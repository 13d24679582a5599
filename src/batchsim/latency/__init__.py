"""How long it takes: models of the seconds of a batch or an iteration, and the file they are written in."""
