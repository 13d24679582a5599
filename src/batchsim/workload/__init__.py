"""Requests: where they come from, when they arrive, how long they are, and what is predicted about them."""
