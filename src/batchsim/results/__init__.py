"""What a run leaves behind: its directory on disk, and forms that other programs read."""
