"""Sweeps: many runs of diffusion.main that differ in a few settings, and the report of what they found.

  trials.py    from a sweep file to trials: their settings, names, folders and commands
  search.py    grids, random draws, Optuna
  local.py     N trials at a time on this machine; the states of trials
  progress.py  the one line that tells how the sweep stands
  cluster.py   Ray, and job files for Slurm and for TPUs on Kubernetes
  results.py   what a work directory of trials holds, as one table
  plots.py     the pictures of a report
  page.py      report.md and report.html
"""
