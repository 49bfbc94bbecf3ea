"""Config keys of earlier versions: stored configs are translated, other uses are answered with the new name."""
from diffusion.setup.specs import parse

RENAMED = {
  'draw': 'timesteps', 'weight': 'loss_weight', 'error': 'loss_type', 'noise': 'noise_type',
  'uncertainty': 'logvar_channels', 'clip_norm': 'grad_clip', 'ema': 'ema_decay', 'averages': 'extra_emas',
  'accumulate': 'grad_accumulation', 'workers': 'data_workers', 'save_failure': 'on_save_error', 'clip': 'clip_x0',
  'heldout_every': 'val_every',
  'heldout_number': 'val_samples', 'keep': 'keep_last',
  'sample.number': 'sample.num_samples', 'sample.mix': 'sample.class_mix', 'sample.weights': 'sample.params',
  'edit.picture': 'edit.image', 'edit.second': 'edit.target', 'edit.number': 'edit.num_samples',
  'edit.source': 'edit.source_class', 'evaluate.what': 'evaluate.parts', 'evaluate.number': 'evaluate.num_samples',
  'evaluate.curve_number': 'evaluate.curve_samples',
  'evaluate.likelihood_number': 'evaluate.likelihood_samples'}
MERGED = {  # old key -> (new key, what to write)
  'guidance': ('guide', 'cfg(2)'), 'negative': ('guide', 'cfg(2, negative=CLASS)'),
  'sample.bad': ('guide', 'autoguidance(WORKDIR, 2)'),
  'sample.classifier': ('guide', 'classifier(WORKDIR, 2)'), 'warmup': ('lr_schedule', 'cosine(warmup=100)'),
  'decay': ('lr_schedule', 'cosine(warmup=100)'), 'beta2': ('optimizer', 'adamw(b2=0.99)'),
  'weight_decay': ('optimizer', 'adamw(weight_decay=0.01)')}
EVERYTHING = 'loss, samples, bound, ode'  # was the default of evaluate.parts
VALUES = {('noise', 'plain'): 'gaussian', ('save_failure', 'go on'): 'continue', ('evaluate.parts', EVERYTHING): '',
          ('evaluate.what', EVERYTHING): ''}


def answer(name):
  """'config.draw is now config.timesteps' for an old key such as 'draw', 'sample.number' or 'number'; else ''."""
  name = name.removeprefix('config.')
  for key in (*RENAMED, *MERGED):
    if name == key or '.' in key and name == key.partition('.')[2]:
      if key in RENAMED:
        return f'config.{key} is now config.{RENAMED[key]}'
      new, example = MERGED[key]
      return f"config.{key} is now part of config.{new}, such as --config.{new}='{example}'"
  return ''


def migrated(stored):
  """A stored config, nested dicts, with the keys of this version. Keys of this version stay as they are."""
  flat = dict(_flat(stored))
  new = {}
  for key, value in flat.items():
    if key not in MERGED:
      new[RENAMED.get(key, key)] = VALUES.get((key, value), value) if isinstance(value, str) else value
  if 'guidance' in flat:
    new['guide'] = _guide(flat)
  if 'decay' in flat:
    new['lr_schedule'] = f'{flat["decay"]}(warmup={flat["warmup"]})'
  if 'beta2' in flat:
    new['optimizer'] = f'adamw(b2={flat["beta2"]}, weight_decay={flat["weight_decay"]})'
  if 'objective' not in flat:
    names = [parse(flat.get(key, ''))[0] for key in ('net', 'schedule')]
    new['objective'] = 'classifier' if names[0] == 'classifier' else 'vdm' if names[1] == 'learned' else 'denoising'
  return _nested(new)


def _guide(flat):
  """config.guide from an old stack without scales, and config.guidance and what else held its arguments."""
  scale, weak, classifier = flat['guidance'], flat.get('sample.bad', ''), flat.get('sample.classifier', '')
  parts = []
  for part in flat.get('guide', 'cfg').split('|'):
    name, args, kwargs = parse(part)
    if name in ('cfg', 'apg'):
      negative = flat.get('negative', '')
      kwargs = {'scale': scale} | ({'negative': negative} if negative else {}) | kwargs
      if weak:
        kept = {key: kwargs[key] for key in ('scale', 'lo', 'hi') if key in kwargs}
        name, kwargs = 'autoguidance', {'model': weak} | kept
    elif name == 'classifier':
      kwargs = {'model': classifier, 'scale': scale} | kwargs
    values = [repr(arg) for arg in args] + [f'{key}={value!r}' for key, value in kwargs.items()]
    parts.append(name + (f'({", ".join(values)})' if values else ''))
  return ' | '.join(parts)


def _flat(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def _nested(flat):
  tree = {}
  for key, value in flat.items():
    *sections, last = key.split('.')
    place = tree
    for section in sections:
      place = place.setdefault(section, {})
    place[last] = value
  return tree
