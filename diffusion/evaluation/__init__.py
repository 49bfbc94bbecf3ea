"""How good a model is: held-out loss, distances to the data, likelihood."""
