"""Tables of measured points: the file they are read from, and models that interpolate between them."""
