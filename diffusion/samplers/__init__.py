"""Samplers: from noise to clean along a grid, in one `lax.scan`.

A sampler is two functions: `init` makes a state (a NamedTuple whose field x is the sample), and `step` moves it from a
noise level t to the next cleaner one s with one evaluation of the network (`adaptive` takes as many as it needs). A
step gets both levels and half of their log-SNR difference, h, computed in float64; it never works out a previous
timestep. `plan` turns a grid into the rows that the scan runs over, with the coefficients that a method needs, in
float64 on the host. To add a sampler, write `step` and a function that returns a Sampler, and list it in SAMPLERS.

All methods for the probability-flow ODE rest on one fact. A noisy image can be written in three ways,

  noise   x / alpha          = y,   dy / d(sigma / alpha)             = eps
  data    x / sigma          = y,   dy / d(alpha / sigma)             = x0
  flow    x / (alpha+sigma)  = y,   dy / d(sigma / (alpha + sigma))   = eps - x0

and in each of them the step with a constant right-hand side is the same, alpha_s * x0 + sigma_s * eps, which is DDIM.
Methods differ in which right-hand side they assume to be smooth, and in how they use earlier or intermediate
evaluations to correct that step (forms.py). Nothing depends on the scaling: VP, VE and flow give equal images, except
for DDPM's large and learned variance, which are in the units of t.
"""
from diffusion.samplers.adaptive import adaptive
from diffusion.samplers.ancestral import (consistency, ddim, ddim_step, ddpm, ddpm_step, dpmpp_1s, euler,
                                          euler_ancestral, flow_euler, langevin)
from diffusion.samplers.base import (compute_dtype, gaussian, prior, projected, sample, Sample, sample_keys, Sampler,
                                     self_conditioned, Step, steps)
from diffusion.samplers.best import best
from diffusion.samplers.corrected import flow_pc, sa_solver, unipc
from diffusion.samplers.multistep import (deis, dpmpp_2m, dpmpp_3m, dpmpp_3m_shipped, dpmpp_sde_2m, dpmpp_sde_3m,
                                          flow_lms, lms, plms)
from diffusion.samplers.shipped import ddim_shipped, pndm
from diffusion.samplers.single_step import dpm_solver_2, dpm_solver_3, dpmpp_2s, dpmpp_3s
from diffusion.samplers.tokens import ancestral, confident, mixed
from diffusion.samplers.two_stage import (churn, dpm_2, dpm_2_ancestral, dpmpp_2s_ancestral, dpmpp_sde, flow_heun,
                                          heun)

SAMPLERS = dict(  # what a config can name
  ddim=ddim, ddpm=ddpm, euler=euler, euler_ancestral=euler_ancestral, heun=heun, churn=churn, dpm_2=dpm_2,
  dpm_2_ancestral=dpm_2_ancestral, dpm_solver_2=dpm_solver_2, dpm_solver_3=dpm_solver_3, dpmpp_1s=dpmpp_1s,
  dpmpp_2s=dpmpp_2s, dpmpp_3s=dpmpp_3s, dpmpp_2s_ancestral=dpmpp_2s_ancestral, dpmpp_2m=dpmpp_2m, dpmpp_3m=dpmpp_3m,
  dpmpp_3m_shipped=dpmpp_3m_shipped, dpmpp_sde=dpmpp_sde, dpmpp_sde_2m=dpmpp_sde_2m, dpmpp_sde_3m=dpmpp_sde_3m,
  sa_solver=sa_solver, unipc=unipc, flow_pc=flow_pc, deis=deis, lms=lms, plms=plms, flow_euler=flow_euler,
  flow_heun=flow_heun, flow_lms=flow_lms, langevin=langevin, adaptive=adaptive, consistency=consistency, best=best,
  ddim_shipped=ddim_shipped, pndm=pndm,  # as diffusers has them
  ancestral=ancestral, confident=confident, mixed=mixed)  # of tokens, and of numbers and categories
