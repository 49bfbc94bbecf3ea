"""The training loop, its state, averages of the weights and what a run takes."""
