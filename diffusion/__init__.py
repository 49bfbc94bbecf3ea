"""Diffusion models in JAX: pure functions for research, one command to train, sample and look."""
__version__ = '0.1.0'
