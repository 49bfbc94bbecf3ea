"""How strong should guidance be, and at which noise levels?

  python -m experiments.run experiments/guidance.py --model=runs/cosine_ddim --workdir=runs/guidance

Scales by intervals of log-SNR on one trained model; outside of its interval a sampler is not guided (arXiv:2404.07724,
which reports that guidance harms at high noise and has no effect at low noise). Consider recall and precision besides
the distance: guidance trades one for the other. At scale 1 the interval has no effect, so this scale appears once.
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
