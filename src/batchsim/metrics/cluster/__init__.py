"""What a cluster did for those who share it."""
