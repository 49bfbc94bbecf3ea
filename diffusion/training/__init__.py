"""Training: the step and the loop, its state, validation, post-hoc averages, resources."""
