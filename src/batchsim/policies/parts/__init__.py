"""What answers are made of: lines of requests, parameters, versions of engines."""
