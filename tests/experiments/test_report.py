"""Reports claim no more than the numbers: no order among overlapping intervals, no table over different protocols."""
import base64
import csv
import html.parser
import io
import itertools
import json
import re

from etils import epath
import numpy as np
from PIL import Image
import pytest

from diffusion.errors import InputError
from experiments import report as reports
from experiments.sweep import page, plots, results, trials
from tests.sweep_program import record


def add(workdir, name, value=None, half=1., samples=None, curve=(), state=None, subject=None, metric='fd_infinity',
        n=500, settings=None, **protocol):
  """A trial folder as a sweep leaves it."""
  folder, settings = epath.Path(workdir) / 'trials' / name, {'config.schedule': name, **(settings or {})}
  config = trials.flat(trials.default()) | settings
  trials.describe(trials.Trial(name, 'configs/cosine_ddim.py', settings, config, [], folder))
  if curve:
    (folder / 'run').mkdir()
    (folder / 'run' / 'metrics.jsonl').write_text(''.join(json.dumps(point) + '\n' for point in curve))
  if state:
    (folder / 'state.json').write_text(json.dumps(state))
  if value is not None:
    (folder / 'evaluation').mkdir()
    text = json.loads(record(value, half, metric, n, **protocol))
    text['subject'] |= subject or {}
    (folder / 'evaluation' / 'evaluation.json').write_text(json.dumps(text))
    if samples is not None:
      np.savez(folder / 'evaluation' / 'samples.npz', **samples)
  return folder


def made(workdir, metric=None):
  """(report.md, rows of results.csv)."""
  path = reports.report(workdir, metric)
  with open(path.parent / 'results.csv') as file:
    return (path.parent / 'report.md').read_text(), list(csv.DictReader(file))


# ---- what may be concluded
def test_overlapping_intervals_are_not_ranked(tmp_path):
  for name, value in (('a', 10.), ('b', 11.5), ('c', 13.), ('d', 20.)):
    add(tmp_path, name, value)
  text, rows = made(tmp_path)
  assert [(row['schedule'], row['ranks']) for row in rows] == [('a', '1-2'), ('b', '1-3'), ('c', '2-3'), ('d', '4')]
  assert re.search('the first is `a`.*Cannot be told apart from it, as their 95 % intervals overlap: `b`\\.', text)
  add(tmp_path, 'e', 1.)
  text, rows = made(tmp_path)
  assert rows[0]['ranks'] == '1' and 'overlaps no other' in text and 'Cannot be told apart' not in text


@pytest.mark.parametrize('metric', ['fd_infinity', 'precision'])
def test_ranks_are_all_that_the_intervals_allow(metric, tmp_path):
  """Against every order of values inside the intervals."""
  rng = np.random.default_rng(5)
  rows = []
  for i in range(6):
    folder = add(tmp_path, f's{i}', rng.uniform(0, 8), rng.uniform(.2, 2), metric=metric)
    rows.append(results.Row(f's{i}', '', {}, 'finished', '', None, trials.finished(folder), folder))
  ends = np.array([[row.record['metrics'][metric][end] for end in ('low', 'high')] for row in rows])
  possible = {row.name: set() for row in rows}
  for choice in itertools.product((0, 1), repeat=6):  # extreme values show every rank
    values = ends[np.arange(6), choice]
    for i, row in enumerate(rows):
      better = values < values[i] if metric == 'fd_infinity' else values > values[i]
      possible[row.name].add(1 + better.sum())
  for place in results.ranks(rows, metric):
    first, _, last = place.ranks.partition('-')
    assert (int(first), int(last or first)) == (min(possible[place.row.name]), max(possible[place.row.name]))
    best = results.ranks(rows, metric)[0].row.record['metrics'][metric]
    mine = place.row.record['metrics'][metric]
    assert place.tied == (mine['low'] <= best['high'] and best['low'] <= mine['high'])


def test_different_protocols_are_separate_and_the_difference_is_reported(tmp_path):
  for name, value in (('a', 10.), ('b', 20.), ('c', 30.)):
    add(tmp_path, name, value)
  add(tmp_path, 'small', 1., n=100)
  add(tmp_path, 'heldout', 2., split='heldout')
  text, rows = made(tmp_path)
  assert {row['schedule']: (row['table'], row['ranks']) for row in rows} == dict(
    small=('1', '1'), a=('1', '2'), b=('1', '3'), c=('1', '4'), heldout=('2', '1'))
  first = text[:text.index('## Measured in another way')]
  assert '`heldout`' not in first and 'split: train, heldout' in text
  # The value of fd depends on the number of samples.
  for name, value, n in (('a', 10., 500), ('b', 11., 500), ('c', 1., 100)):
    add(tmp_path / 'fd', name, value, metric='fd', n=n)
  text, rows = made(tmp_path / 'fd', 'fd')
  assert 'n: 500, 100' in text and 'the first is `a`' in text
  assert {row['schedule']: row['table'] for row in rows} == dict(a='1', b='1', c='2')


def test_a_column_holds_only_values_measured_in_the_same_way(tmp_path):
  """The distance does not depend on the number of samples, precision does."""
  for name, value, n in (('a', 10., 100), ('b', 20., 500), ('c', 30., 500)):
    path = add(tmp_path, name, value, n=n) / 'evaluation' / 'evaluation.json'
    found = json.loads(path.read_text())
    found['metrics'] |= dict(precision=dict(value=value / 100, error=.01, low=0., high=1., n=n),
                             kid=dict(value=value / 10, error=.1, low=0., high=9., n=n))
    heldout = dict(value=.0625, error=.001, low=0., high=1., n=300)
    found['heldout'] = {metric: heldout for metric in ('fd_infinity', 'kid', 'precision')}
    path.write_text(json.dumps(found))
  text, rows = made(tmp_path)
  lines = [line for line in text.split('\n') if line.count(' | ') == 4]
  cells = {line.split(' | ')[1]: line.rstrip(' |').split(' | ')[-2:] for line in lines}
  assert cells['`a`'] == ['1 ± 0.1', '-']
  assert cells['`b`'] == ['2 ± 0.1', '0.2 ± 0.01'] and cells['`c`'] == ['3 ± 0.1', '0.3 ± 0.01']
  assert cells['held-out images'] == ['0.0625 ± 0.001', '-']
  assert 'A dash: measured in another way than the rest of its column (`precision`, n: 500, 100)' in text
  assert [row['precision'] for row in rows] == ['0.1', '0.2', '0.3']
  assert [row['precision_n'] for row in rows] == ['100', '500', '500']


def test_a_model_trained_further_is_another_setting(tmp_path):
  for name, step in (('a', 5), ('b', 6)):
    folder = epath.Path(tmp_path) / 'trials' / name
    settings = {'config.guide': ''}
    trials.describe(trials.Trial(name, 'runs/x', settings, settings, [], folder, step, 'a1b2c3d4e5'))
    (folder / 'evaluation').mkdir()
    text = json.dumps(json.loads(record(1.)) | dict(subject=dict(step=step)))
    (folder / 'evaluation' / 'evaluation.json').write_text(text)
  assert [row['model'] for row in made(tmp_path)[1]] == ['step 5, a1b2c3d4', 'step 6, a1b2c3d4']


def test_held_out_images_show_the_attainable_value(tmp_path):
  folder = add(tmp_path, 'a', 10.)
  path = folder / 'evaluation' / 'evaluation.json'
  found = json.loads(path.read_text())
  heldout = dict(fd_infinity=dict(value=.5, error=.1, low=.25, high=.75, n=500))
  path.write_text(json.dumps(found | dict(heldout=heldout)))
  text, rows = made(tmp_path)
  assert '|  | held-out images | 0.5 [0.25, 0.75] |' in text and len(rows) == 1


def test_every_trial_without_a_result_is_listed(tmp_path):
  add(tmp_path, 'done', 3.)
  reason = 'exit code 1; its last line: error | of <b>'
  add(tmp_path, 'broken', state=dict(status='failed', attempts=2, seconds=3., reason=reason))
  add(tmp_path, 'waits')
  add(tmp_path, 'left', state=dict(status='running', attempts=1, seconds=3., reason=''))  # killed with its runner
  (tmp_path / 'trials' / 'left' / 'log.txt').write_text('one\nKilled\n')
  add(tmp_path, 'other', 3., metric='kid')
  text, rows = made(tmp_path)
  assert '2 of 5 trials are finished (1 waiting, 1 stopped, 1 failed)' in text
  assert '| `broken` | failed | exit code 1; its last line: error \\| of <b> |' in text
  assert '`left` | stopped | ended without an evaluation; its last line: Killed' in text
  assert '| `other` | finished | fd_infinity was not measured |' in text and '`waits` | waiting' in text
  assert {row['trial']: row['status'] for row in rows} == dict(
    done='finished', broken='failed', waits='waiting', left='stopped', other='finished')


def test_a_sweep_without_results_yet(tmp_path):
  with pytest.raises(InputError, match='holds no trials'):
    reports.report(tmp_path)
  add(tmp_path, 'a')
  text, rows = made(tmp_path)
  assert '0 of 1 trials are finished' in text and 'Nothing can be said yet' in text
  with pytest.raises(InputError, match='unknown'):
    reports.report(tmp_path, 'fid')


# ---- output
class Links(html.parser.HTMLParser):
  """The references of a page, and its text."""
  def __init__(self):
    super().__init__()
    self.found, self.tags, self.text = [], [], ''

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    self.found += [value for key, value in attributes if key in ('src', 'href', 'data', 'srcset')]

  def handle_data(self, data):
    self.text += data


def test_the_page_is_one_small_file(tmp_path):
  rng = np.random.default_rng(0)
  classes = np.eye(4, dtype=np.float32)[np.arange(40) % 4]
  for i, name in enumerate(['a<b>', 'b', *'cdefghijklmnopqrstuvwxyz']):
    curve = [dict(step=step, time=0., heldout_loss=1 / (1 + step + i), fd_infinity=9. / (1 + step),
                  fd_infinity_error=.1) for step in range(4)]
    noise = rng.integers(0, 255, (40, 32, 32, 3), np.uint8)  # the worst case
    add(tmp_path, name, 10. + i, samples=dict(images=noise, labels=classes), curve=curve)
  out = tmp_path / 'out'
  assert reports.report(tmp_path, out=out) == epath.Path(out) / 'report.html'
  names = ['curves.png', 'metric.png', 'report.html', 'report.md', 'results.csv', 'samples.png']
  assert sorted(path.name for path in out.iterdir()) == names
  assert sum(path.stat().st_size for path in out.iterdir()) < 2_000_000
  links = Links()
  links.feed((out / 'report.html').read_text())
  assert len(links.found) == 3 and 'a<b>' in links.text
  assert 'script' not in links.tags and 'link' not in links.tags
  for link in links.found:
    kind, data = link.split(',', 1)
    assert kind == 'data:image/png;base64' and Image.open(io.BytesIO(base64.b64decode(data))).width > 300
  for name in re.findall(r'!\[.*\]\((.*)\)', (out / 'report.md').read_text()):
    assert (out / name).exists()


def test_all_metrics_are_in_the_csv(tmp_path):
  add(tmp_path, 'a', 1 / 3, .1, subject=dict(evaluations=20), settings={'config.grid': 'trailing(20)'},
      state=dict(status='finished', seconds=12.5))
  add(tmp_path, 'b', 2 / 3, .1, subject=dict(evaluations=10), settings={'config.grid': 'trailing(10)'})
  _, rows = made(tmp_path)
  path = tmp_path / 'trials' / 'a' / 'evaluation' / 'evaluation.json'
  estimate = json.loads(path.read_text())['metrics']['fd_infinity']
  assert {key: float(rows[0][f'fd_infinity_{key}'.removesuffix('_value')]) for key in estimate} == estimate
  assert rows[0]['evaluations'] == '20' and rows[0]['seconds'] == '12.5' and rows[1]['grid'] == 'trailing(10)'


def test_quality_against_evaluations_where_they_vary(tmp_path):
  for i, (sampler, steps) in enumerate(itertools.product(('ddim', 'unipc(2)'), (5, 10, 50))):
    add(tmp_path, f't{i}', 10. - i, subject=dict(network_calls=steps),
        settings={'config.schedule': 'cosine', 'config.sampler': sampler,
                  'config.grid': f'karras({steps}, sigma_max=40)'})
  found = results.collect(tmp_path)
  assert set(found.varied) == {'config.sampler', 'config.grid'}
  names = {plots._series(place.row, found.varied) for place in found.groups[0].ranked}
  assert names == {'ddim, karras, sigma_max=40', 'unipc(2), karras, sigma_max=40'}  # one line per solver
  assert plots.quality(found.groups[0], 'fd_infinity', found.varied)
  text, _ = made(tmp_path)
  assert 'quality.png' in text and '| evaluations |' in text
  found.groups[0].ranked[:] = [place for place in found.groups[0].ranked if plots.calls(place.row) == 5]
  assert plots.quality(found.groups[0], 'fd_infinity', found.varied) is None


def test_the_metric_against_the_distance_is_a_line_for_trials_that_differ_in_a_number(tmp_path, monkeypatch):
  lines = {}
  monkeypatch.setattr(plots, '_png', lambda figure: lines.update(
    {text.get_text(): handle[0].get_xydata().tolist() for text, handle in zip(
      figure.axes[0].get_legend().get_texts(), figure.axes[0].containers)}) or b'image')
  guides = 'cfg(2)', 'clip(runs/a, 30, lo=.5)', 'cfg(10)', 'clip(runs/a, 30, lo=1.5)', 'of(npz)', 'of(x.npz)'
  for i, guide in enumerate(guides):
    folder = add(tmp_path, f't{i}', .2 + .1 * i, .01, metric='caption_kind',
                 settings={'config.schedule': 'cosine', 'config.guide': guide})
    path = folder / 'evaluation' / 'evaluation.json'
    text = json.loads(path.read_text())
    text['metrics']['fd_infinity'] = dict(text['metrics']['caption_kind'], value=5. - i, low=4.5 - i, high=5.5 - i)
    path.write_text(json.dumps(text))
  group = results.collect(tmp_path, 'caption_kind').groups[0]
  assert plots.trade(group, 'caption_kind') == b'image'
  assert {name: np.round(line, 3).tolist() for name, line in lines.items()} == {  # by scale, 10 after 2
    'cfg(..)': [[5., .2], [3., .4]], 'clip(runs/a, 30, lo=..)': [[4., .3], [2., .5]],
    'of(npz)': [[1., .6]], 'of(x.npz)': [[0., .7]]}
  assert plots.trade(group, 'fd_infinity') is None  # no metric to be raised


def test_samples_are_shown_side_by_side_by_class(tmp_path):
  order = plots._in_turn(np.array([2, 0, 0, 1, 2, 0]), 6)
  assert order.tolist() == [1, 3, 0, 2, 4, 5]
  assert plots._in_turn(None, 3).tolist() == [0, 1, 2]
  flat = lambda colour: np.full((8, 16, 16, 3), colour, np.uint8)
  for name, value, colour in (('a', 2., (255, 0, 0)), ('b', 1., (0, 0, 255))):
    add(tmp_path, name, value, samples=dict(images=flat(colour)))
  found = results.collect(tmp_path)
  png = plots.samples([place.row for place in found.groups[0].ranked])
  pixels = np.asarray(Image.open(io.BytesIO(png)).convert('RGB'))
  blue, red = (np.argwhere((pixels == colour).all(-1)) for colour in ((0, 0, 255), (255, 0, 0)))
  assert len(blue) == len(red) == 8 * 64 * 64 and blue[:, 0].max() < red[:, 0].min()  # the best on top


def test_hparams_in_tensorboard(tmp_path):
  add(tmp_path, 'a', 1.5)
  add(tmp_path, 'b')
  for _ in range(2):  # the second time nothing is written
    reports.report(tmp_path)
    [file] = (tmp_path / 'tensorboard').glob('*/events*')
  from tensorboardX.proto import event_pb2, plugin_hparams_pb2
  data, plain, scalars = file.read_bytes(), {}, {}
  while data:
    size = int.from_bytes(data[:8], 'little')
    event, data = event_pb2.Event.FromString(data[12:12 + size]), data[16 + size:]
    for value in event.summary.value:
      if value.tag == '_hparams_/session_start_info':
        content = plugin_hparams_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
        plain = {key: v.string_value for key, v in content.session_start_info.hparams.items()}
      elif value.HasField('simple_value'):
        scalars[value.tag] = value.simple_value
  assert plain == dict(schedule='a') and scalars == dict(fd_infinity=1.5)


def test_blocks_as_markdown_and_html():
  blocks = [('title', 'A & b'), ('text', 'It is `x<y>`.'), ('table', ['n', 'm|k'], [['`a|b`', 1]]),
            ('details', 'more', 'x < 1')]
  assert page.markdown(blocks) == ('# A & b\n\nIt is `x<y>`.\n\n| n | m\\|k |\n|---|---|\n| `a\\|b` | 1 |\n\n'
                                   '<details><summary>more</summary>\n\n```\nx < 1\n```\n</details>\n')
  links = Links()
  links.feed(page.html(blocks))
  assert ' '.join(links.text.split()).endswith('A & b It is x<y>. nm|k a|b1 morex < 1')
  assert links.tags.count('td') == 2 and links.tags.count('code') == 2 and 'y' not in links.tags
