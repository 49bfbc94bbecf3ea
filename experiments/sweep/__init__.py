"""Sweeps: many runs of diffusion.main that differ in a few settings, and the report of their results.

  sweep_file.py  a sweep file as a value
  trials.py      its trials: their settings, names, folders and commands
  search.py      grids, random draws, Optuna
  local.py       N trials at a time on this machine; the states of trials
  progress.py    the progress line
  cluster.py     Ray, and job files for Slurm and for TPUs on Kubernetes
  results.py     the contents of a work directory of trials, as one table
  plots.py       the images of a report
  page.py        report.md and report.html
"""
