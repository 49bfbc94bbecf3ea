"""How strong should guidance be, and at which noise levels?

  python -m experiments.run experiments/guidance.py --model=runs/cosine_ddim --workdir=runs/guidance

Scales by intervals of log-SNR on one trained model; outside of its interval a sampler is not guided at all (arXiv:2404.07724, which
found that guidance harms at high noise and is idle at low). Look at recall and precision beside the distance: guidance buys the one with
the other. At scale 1 the interval changes nothing, so that this scale stands there once.
"""
MODE = 'evaluate'
METRIC = 'fd_infinity'
SCALES = [1.5, 2., 3., 5.]
INTERVALS = ['', ', lo=-4', ', hi=4', ', lo=-4, hi=4']
FIXED = {'config.evaluate.parts': 'samples'}


def sweep():
  yield {'config.guide': 'cfg(1)'} | FIXED
  for scale in SCALES:
    for interval in INTERVALS:
      yield {'config.guide': f'cfg({scale:g}{interval})'} | FIXED
