"""Pictures of measurements beside what a model says of them."""
