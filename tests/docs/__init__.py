"""Pages: what they show is run, and prints what they say it prints."""
