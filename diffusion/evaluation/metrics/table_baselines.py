"""Simple models of tables, to compare with: columns on their own, and a Gaussian copula."""
import numpy as np
import scipy
from scipy.special import ndtr, ndtri

from diffusion.evaluation.metrics.tables import count


def independent(train, number, rng):
  """`number` rows in which each column is drawn on its own from the training rows, missing numbers among them."""
  N = count(train)
  draw = lambda a: np.take_along_axis(a, rng.integers(0, N, (number, a.shape[1])), 0)
  return train._replace(numbers=draw(train.numbers), categories=draw(train.categories))


def gaussian_copula(train, number, rng):
  """`number` rows of a Gaussian copula with the columns of the training rows (Patki et al. 2016, The Synthetic Data
  Vault).

  Values become normal scores of their ranks, the mean rank for equal ones; rows are drawn with the correlations of
  these, and each score goes back to the value at its quantile. A category is an interval of scores, in the order of
  the categories; missing numbers are the highest interval. So each column keeps its distribution, and columns without
  repeated values their correlations; those of repeated ones come out weaker.
  """
  N, Dn = train.numbers.shape
  everything = np.hstack([train.numbers, train.categories])
  ordered = np.sort(everything, 0)  # missing last
  ranks = scipy.stats.rankdata(np.where(np.isnan(everything), np.inf, everything), axis=0)
  scores = ndtri((ranks - .5) / N)
  scores = scores - scores.mean(0)
  spread = scores.std(0)
  scores = scores / np.where(spread > 1e-9, spread, 1.)  # a constant column has no score
  root, axes = np.linalg.eigh(scores.T @ scores / N)
  latent = rng.normal(size=(number, len(root))) @ (axes * np.sqrt(np.maximum(root, 0))).T
  rows = np.take_along_axis(ordered, np.minimum((ndtr(latent) * N).astype(int), N - 1), 0)
  return train._replace(numbers=rows[:, :Dn], categories=rows[:, Dn:].astype(np.int32))
