"""Tests run on one CPU device with the arithmetic of the laptop; those that need several devices start a process of their own."""
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
