"""What stands before answers from outside the package: everything they say is checked."""
