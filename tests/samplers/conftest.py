"""Fixtures of the tests of samplers."""
import jax
import pytest


@pytest.fixture
def double():
  """Float64 throughout a test."""
  with jax.enable_x64(True):
    yield
