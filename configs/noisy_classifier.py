r"""A classifier of noisy sprites for classifier guidance (arXiv:2105.05233) of the main job, at all its noise levels.

  python -m diffusion.main --config=configs/noisy_classifier.py
  python -m diffusion.main --mode=sample --workdir=runs/cosine_ddim \
    --config.guide='classifier(runs/noisy_classifier, 2)'
  python -m diffusion.main --config=configs/noisy_classifier.py:tiny

The loss is the cross-entropy; `--mode=evaluate` lists it by log-SNR. At the noisiest levels expect no less than the
entropy of the labels, log 6 = 1.79 for six classes of equal size.
"""
from diffusion.setup.config import default, variant


def get_config(name=''):
  c = default()
  c.objective, c.net = 'classifier', 'classifier(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,))'
  c.schedule = 'cosine'
  c.steps, c.learning_rate = 600, 1e-3
  return variant(c, name)
