"""From measured points to a model with its errors: fits of every family, and what is told about them."""
