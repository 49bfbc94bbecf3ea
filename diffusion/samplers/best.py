"""The choice of a solver for a grid."""
import numpy as np

from diffusion.samplers.corrected import flow_pc, unipc
from diffusion.samplers.forms import flow_time, lam
from diffusion.samplers.multistep import flow_lms, plms


def best(levels):
  """The solver of the ODE with the least error for a grid, by its number of steps and its kind.

  Measured by experiments/solvers.py (docs/solvers.md) on a mixture of Gaussians with its exact denoiser: in each of
  30 cells, 5, 10, 20, 40 and 80 evaluations on the grids trailing, angle, karras, exponential and cosine of `edm` and
  trailing of `flow`, at most 1.08 times the least error of all our deterministic solvers, and 1.01 times in the mean.
  On two other mixtures the rule, as it was, had 1.09 and 1.15 times in the mean, and at most 1.6 and 2.9; no single
  solver has less than 1.7. It was not fitted to a trained network, whose errors near the clean end a method of high
  order may enlarge: `unipc(2)` is the cautious choice, and is taken where the last step, from far above clean, is
  more than three times as long as the one before (as on offset_cosine, which ends at sigma / alpha = 0.33): a polynomial
  through short steps does not extrapolate to one 16 times as long.
  """
  S, time = len(levels.logsnr) - 1, flow_time(levels)
  gaps = -np.diff(time)
  if S > 2 and time[-2] > .05 and gaps[-1] > 3 * gaps[-2]:
    return unipc(2)
  if S * np.max(gaps) > 1.75 and time[-2] < .025:  # about even in log-SNR: few steps in the middle
    h = np.diff(lam(levels)[:-1])
    growing = S > 2 and h[-1] > 1.5 * h[0]  # karras
    rule = (8, flow_pc(2)), (15, plms(3 if growing else 4)), (55, flow_lms(4)), (np.inf, unipc(3))
  elif levels.alpha[0] == 0:  # even along a straight path
    rule = (6, flow_pc(1)), (8, flow_pc(2)), (15, flow_lms(3)), (55, flow_lms(4)), (np.inf, flow_pc(3))
  else:  # even in angle or nearly
    rule = (6, flow_pc(1)), (15, flow_pc(2)), (30, plms(4)), (np.inf, flow_pc(3))
  return next(solver for below, solver in rule if S < below)
