"""The mathematics of diffusion: jax and numpy alone."""
