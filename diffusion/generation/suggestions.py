"""What a user may want to do with a model that has been trained."""
import shlex


def after_import(run, workdir):
  """Command lines for an imported model, which has no data yet."""
  command = f'python -m diffusion.main --workdir={shlex.quote(str(workdir))}'
  texts = 'prompt' in run.task.takes
  data = run.config.data.replace('IMAGES', '/my/captioned/images' if texts else '/my/images')
  return [f'{command} --mode=sample' + ' --prompt=TEXT' * texts,
          f'{command} --config.data={shlex.quote(data)} --config.steps=1000']


def commands(run, workdir):
  """Command lines for an Experiment in `workdir`, the most useful first."""
  command = f'python -m diffusion.main --workdir={shlex.quote(str(workdir))}'
  tries = [f'{command} --mode=evaluate'] if run.task.evaluators else []
  if run.task.gives == 'embedding':  # a prior, which draws nothing to look at
    chain = shlex.quote(f"{workdir}, runs/unclip")
    tries.insert(0, f"python -m diffusion.main --mode=sample --chain={chain} --prompt=TEXT")
  elif run.task.embed:
    chain = shlex.quote(f'runs/prior_diffusion, {workdir}')
    tries = [f'python -m diffusion.main --mode=sample --chain={chain} --prompt=TEXT',
             f'{command} --mode=edit --config.edit.task=variations --config.edit.image=FILE', *tries]
  elif 'denoise' in run.can:
    guide = (' --prompt=TEXT' if 'prompt' in run.task.takes else '') + (
      " --config.guide='cfg(2)'" if 'classes' in run.task.takes and run.classes else '')
    show = ' --config.sample.show=' + ('words' if 'attention' in run.can else 'all') if run.task.tiles else ''
    tries = [f'{command} --mode=sample{guide}{show}',
             f"{command} --mode=sample --config.sampler=ddpm --config.grid='trailing(200)'", *tries]
    file = f'{command} --mode=edit --config.edit.image=FILE'
    if 'kept' in run.task.takes:
      tries.insert(0, f'{file} --config.edit.mask=FILE' + (' --prompt=TEXT' if 'prompt' in run.task.takes else ''))
    if 'images' in run.task.takes:
      chain = shlex.quote(f'RUN_OF_SMALL_IMAGES, {workdir}')
      tries = [f'{file} --config.edit.task=restore', f'python -m diffusion.main --mode=sample --chain={chain}', *tries]
  elif run.predicts:
    tries = [f'{command} --mode=sample' + (' --config.sample.show=all' if run.task.tiles else ''), *tries]
  elif 'embed_text' in run.can:
    scale = 50 if run.schedule is None else 300  # of one that sees noise
    guide = '--config.guide=' + shlex.quote(f'cfg(2) | clip_guidance({workdir}, {scale})')
    tries.append(f'python -m diffusion.main --mode=sample --workdir=RUN_OF_A_MODEL --prompt=TEXT {guide}')
  elif 'log_prob' in run.can:
    guide = '--config.guide=' + shlex.quote(f'classifier({workdir}, 2)')
    tries.insert(0, f'python -m diffusion.main --mode=sample --workdir=RUN_OF_A_MODEL {guide}')
  return tries
