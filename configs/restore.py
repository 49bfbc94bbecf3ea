r"""Restoration: a model that sees a degraded image beside x, trained on pairs that a degradation makes.

  python -m diffusion.main --config=configs/restore.py:sr --workdir=runs/sr        4x4 to 16x16 pixels, sprites
  python -m diffusion.main --config=configs/restore.py:deblur                      blur and noise, sprites
  python -m diffusion.main --config=configs/restore.py:colour                      grey to RGB, sprites
  python -m diffusion.main --config=configs/restore.py:mri                         a third of k-space, phantoms
  python -m diffusion.main --config=configs/restore.py:ct                          20 directions of rays, phantoms
  python -m diffusion.main --config=configs/restore.py:low_dose                    30 photons a white pixel, phantoms
  python -m diffusion.main --config=configs/restore.py:brain                       a third of k-space, slices of a brain
  python -m diffusion.main --config=configs/restore.py:tiny                        :sr in seconds; or :mri_tiny, ..
  python -m diffusion.main --workdir=runs/sr --mode=evaluate                       PSNR, spread and its calibration
  python -m diffusion.main --workdir=runs/sr --mode=edit --config.edit.task=restore --config.edit.image=small.png

Your own pairs, of files with the same names in two folders, 8 or 16 bits:
  --config.task=restore --config.data='pairs(good, degraded)'
Your own volumes: :brain with --config.data='nifti(/my/scans, size=64)'. It needs pip install -e '.[scans]'.
Ten minutes each. After half of that expect :sr 4 dB above cubic interpolation, and :mri 13, :ct 7, :low_dose 8 and
:brain 3 dB above what the network sees, with a spread of samples that is too small (docs/restoration.md).
"""
from diffusion.setup.config import default, tiny, variant

HEADS, BRAIN = 'phantoms(32)', 'brain(64)'


def scan(c, data, task):
  c.data, c.task = data, task
  # y tells nearly all. A network that predicts x0 then ignores x_t, and its samples are too much alike.
  c.predict, c.loss_weight = 'v', 'one'
  c.net = 'unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(4,), patch=2)'  # a quarter of the cost
  return c


def sr(c):
  return c


def deblur(c):
  c.task = 'restore(deblur(1, noise=.05))'
  return c


def colour(c):
  c.task = 'restore(colour)'
  return c


def mri(c):
  return scan(c, HEADS, 'restore(mri(3, noise=.05))')


def ct(c):
  return scan(c, HEADS, 'restore(ct(20, noise=.02))')


def low_dose(c):
  return scan(c, HEADS, 'restore(low_dose(30))')


def brain(c):
  """A model of one brain, which knows no other: it shows the way for volumes of one's own."""
  c = scan(c, BRAIN, 'restore(mri(3, noise=.05))')
  c.net = 'unet(channels=32, multipliers=(1, 2, 2), blocks=1, attention=(8,), patch=2)'
  c.evaluate.num_samples = 19 * 18  # all that are held out
  return c


VARIANTS = dict(sr=sr, deblur=deblur, colour=colour, mri=mri, ct=ct, low_dose=low_dose, brain=brain)


def small(c):
  """A variant in its tiny form."""
  c = tiny(c)
  c.data = {HEADS: 'phantoms(16, n=64, heldout=16)', BRAIN: 'brain(16)'}.get(c.data, c.data)
  c.evaluate.num_samples = 19 * 6
  return c


def get_config(name=''):
  c = default()
  c.task = 'restore(super_resolution(4))'
  c.guide, c.condition_dropout = '', 0.
  c.sampler, c.grid = 'ddim(eta=1)', 'trailing(25)'
  c.minutes, c.batch = 10., 32
  c.val_every = c.save_every = 600
  c.sample_every = 1000
  c.sample.num_samples = 32
  c.evaluate.num_samples = 1900  # 19 of each of 100 images
  return variant(c, name, **VARIANTS, tiny=small,
                 **{f'{key}_tiny': lambda c, make=make: small(make(c)) for key, make in VARIANTS.items()})
