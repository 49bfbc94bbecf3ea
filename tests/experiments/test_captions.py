"""The exact distribution of the sprites' captions against closed forms, brute force in fractions, and real draws."""
import collections
from fractions import Fraction
import functools
import itertools
import math
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from diffusion.data import sprites
from diffusion.data.sprites import creatures, food, people, spells, weapons
from diffusion.errors import InputError
from diffusion.training import open_model
from experiments.benchmarks import captions

DRAWS = 120_000


# ---- closed forms of the entropy, by the chain rule
def h(*p):
  """Entropy of probabilities; the last one is left out."""
  p = [*p, 1 - sum(p)]
  return -sum(q * math.log(q) for q in p)


def mean(options, value):
  return sum(map(value, options)) / len(options)


def other_vivid(colour):
  return math.log(10 - (colour in creatures.VIVID))


def of_creatures():
  def more(kind):
    horns = kind in ('slime', 'ghost', 'golem', 'eye', 'chick')
    return h(1 / 3) * horns + (h(1 / 4, 1 / 2) if kind in ('slime', 'ghost') else math.log(2))
  return math.log(13) + math.log(13) + mean(creatures.SKINS, other_vivid) + mean(tuple(creatures.EXTRAS), more)


def of_food():
  def more(kind):
    colours = food.COLOURS[kind]
    second = mean(colours, other_vivid) if kind in food.EXTRAS else 0
    return math.log(len(colours)) + second + h(1 / 3) * (kind in food.BITTEN)
  return math.log(20) + math.log(3) + mean(tuple(food.COLOURS), more)


def of_spells():
  def more(kind):
    return h(1 / 5) + 4 / 5 * math.log(9) if kind in ('fireball', 'lightning bolt', 'beam') else math.log(9)
  return math.log(13) + math.log(10) + math.log(3) + mean(tuple(spells.EXTRAS), more)


def of_weapons():
  more = dict(shield=math.log(3), sword=math.log(2), bow=math.log(2))
  second = mean(weapons.METALS, lambda colour: math.log(12 - (colour in weapons.CLOTH)))
  return math.log(14) + math.log(10) + math.log(3) + second + mean(tuple(weapons.PARTS), lambda kind: more.get(kind, 0))


def of_heroes():
  head = h(.35) + .35 * (math.log(6) + .5 * math.log(12)) + .65 * (math.log(8) + 7 / 8 * math.log(10))
  beard = .35 * h(5 / 6 * 7 / 8 * .12) + .65 * 7 / 8 * h(5 / 6 * .12)
  held = math.log(8) + 7 / 8 * math.log(6) + h(.25) + .25 * math.log(10)
  return head + beard + math.log(12) + math.log(5) + held


def of_side_heroes():
  head = h(.35) + .35 * (math.log(6) + .5 * math.log(12)) + .65 * (math.log(7) + math.log(10))
  return head + math.log(12) + math.log(3) + math.log(7) + 6 / 7 * math.log(6)


CLOSED = dict(zip(captions.CLASSES, (of_heroes, of_creatures, of_food, of_spells, of_weapons, of_side_heroes)))


@pytest.mark.parametrize('label, name', list(enumerate(captions.CLASSES)))
def test_probabilities_sum_to_one_and_the_entropy_is_that_of_the_chain_rule(label, name):
  made = captions.grammar(label)
  assert abs(math.prod(math.fsum(table.values()) for table in made.tables) - 1) < 1e-12
  np.testing.assert_allclose(captions.entropy(label), CLOSED[name](), rtol=1e-12)


# ---- brute force: every combination of choices, with probabilities in fractions
class Fork(Exception):
  """A choice among `args[0]` options that no script has made."""


class Scripted:
  """In place of `pick` and the random generator: takes the options that a script names."""

  def __init__(self, script):
    self.script, self.p = list(script), Fraction(1)

  def choose(self, options):
    if not self.script:
      raise Fork(len(options))
    probability, value = options[self.script.pop(0)]
    self.p *= probability
    return value

  def pick(self, rng, options):
    return self.choose([(Fraction(1, len(options)), option) for option in options])

  def random(self):
    return self

  def __lt__(self, limit):
    limit = Fraction(str(limit))
    return self.choose([(limit, True), (1 - limit, False)])


def brute_force(monkeypatch, design, write):
  """{caption: Fraction} over all of people.design."""
  found, scripts = collections.Counter(), [()]
  while scripts:
    script = scripts.pop()
    rng = Scripted(script)
    monkeypatch.setattr(people, 'pick', rng.pick)
    monkeypatch.setattr(people, 'pick_other', lambda rng, options, taken, pick=rng.pick: pick(
      rng, [option for option in options if option != taken]))
    try:
      found[write(design(rng))] += rng.p
    except Fork as fork:
      scripts += [(*script, i) for i in range(fork.args[0])]
  return found


SMALL = dict(CLOTH=('red', 'orange'), HAIR=('black', 'orange'), SKINS=('tan', 'green'), VIVID=('red', 'orange'),
             ITEMS=('axe', 'bow', 'nothing'), ITEM_COLOURS=('silver', 'gold'), FRONT_HATS=('hood', 'helmet'),
             SIDE_HATS=('cap', 'crown'), FRONT_HAIR=('bald', 'long', 'bun'), SIDE_HAIR=('long', 'bun'),
             FRONT_OUTFITS=('dress', 'robe'), SIDE_OUTFITS=('robe', 'armor'), FRONT_LEGS=('astride',),
             SIDE_LEGS=('standing',))


@pytest.mark.parametrize('label', (0, 5))
def test_heroes_with_a_small_wardrobe_have_the_distribution_that_brute_force_finds(label, monkeypatch):
  for name, options in SMALL.items():
    monkeypatch.setattr(people, name, options)
  with monkeypatch.context() as patch:
    found = brute_force(patch, lambda rng: people.design(rng, label == 5), lambda a: sprites.caption(label, a))
  assert sum(found.values()) == 1 and len(found) > 80
  made = captions.make(label)
  monkeypatch.setattr(captions, 'grammar', lambda label: made)
  for text, p in found.items():
    assert abs(captions.log_prob(label, text) - math.log(p)) < 1e-11, text
  assert math.prod(map(len, made.tables)) == len(found)


# ---- real draws
@functools.cache
def drawn(label):
  rng = random.Random(17 + label)
  return [sprites.caption(label, sprites.design(label, rng)) for _ in range(DRAWS)]


def g_test(observed, expected):
  """p-value of the G test of {bin: count} against {bin: probability}; bins that expect less than 5 are one."""
  assert set(observed) <= set(expected), set(observed) - set(expected)
  n = sum(observed.values())
  large = [key for key, p in expected.items() if p * n >= 5]
  counts, means = [observed[key] for key in large], [expected[key] * n for key in large]
  if n - sum(means) > 1e-6 * n:
    counts, means = [*counts, n - sum(counts)], [*means, n - sum(means)]
  return stats.power_divergence(counts, np.array(means) * n / sum(means), lambda_='log-likelihood').pvalue


# What a text of heroes shows; part 0 of the grammar has the first four, part 1 the next two, part 2 the others.
SHOWN = dict(last=r' with .*?([\w-]+) in ', start=r' with (an? \w+|\w+ \w+)', beard=r'(bearded)$',
             noun=r' with (?:an? )?(.+?) in ', outfit=r' in [^,]*?(\w+)(?:,|$)', colour=r' in (?:an? )?(\w+)',
             item=r'holding an? (\w+ (?!shield)\w+)', shield=r'(\w+) shield')
PART = dict(last=0, start=0, beard=0, noun=0, outfit=1, colour=1, item=2, shield=2)
PAIRS = [('last', 'beard'), ('start', 'beard'), ('noun', 'beard'), ('outfit', 'colour'), ('item', 'shield'),
         ('noun', 'outfit'), ('last', 'item'), ('beard', 'shield'), ('beard', 'outfit'), ('colour', 'item')]


def shown(text, *names):
  found = [re.search(SHOWN[name], text) for name in names]
  return tuple(match and match[1] for match in found)


def expected_bins(tables, pair, who):
  """{what a pair of SHOWN is: probability} over the two parts of the grammar that show it."""
  chosen = {PART[name] for name in pair}
  rows = [table.items() if i in chosen else [(next(iter(table)), 1.)] for i, table in enumerate(tables)]
  bins = collections.Counter()
  for parts in itertools.product(*rows):
    (((head, beard), _), (clothes, _), (held, _)), p = parts, math.prod(p for _, p in parts)
    text = f'{who} with {head} in {clothes}' + (f', holding {held}' if held else '') + (', bearded' if beard else '')
    bins[shown(text, *pair)] += p
  return bins


@functools.cache
def observed_bins(label):
  """{pair: {what it is: count}} over real draws."""
  bins = {pair: collections.Counter() for pair in PAIRS if label == 0 or not {'beard', 'shield'} & set(pair)}
  for text in drawn(label):
    features = dict(zip(SHOWN, shown(text, *SHOWN)))
    for pair, count in bins.items():
      count[tuple(features[name] for name in pair)] += 1
  return bins


def p_values(tables, label):
  who = ('a hero', 'a side-facing hero')[label == 5]
  return [g_test(count, expected_bins(tables, pair, who)) for pair, count in observed_bins(label).items()]


def with_more_beards(made):
  """A wrong Grammar of heroes: a third more beards."""
  head, *rest = made.tables
  weights = {part: p * (4 / 3 if part[1] else 1) for part, p in head.items()}
  return made._replace(tables=({part: p / sum(weights.values()) for part, p in weights.items()}, *rest))


@pytest.mark.parametrize('label', (0, 5))
def test_words_of_heroes_occur_together_as_often_as_the_distribution_says(label):
  values = p_values(captions.grammar(label).tables, label)
  assert min(values) > 1e-3, values


def test_a_wrong_distribution_of_heroes_is_found(monkeypatch):
  wrong = with_more_beards(captions.grammar(0))
  assert min(p_values(wrong.tables, 0)) < 1e-9
  monkeypatch.setattr(captions, 'grammar', lambda label: wrong)
  assert deviation(0) > 4


@pytest.mark.parametrize('label', (1, 2, 3, 4))
def test_captions_of_things_occur_as_often_as_the_distribution_says(label):
  (table,) = captions.grammar(label).tables
  assert g_test(collections.Counter(drawn(label)), table) > 1e-3
  other, = captions.grammar(label % 4 + 1).tables
  assert not set(table) & set(other)


def deviation(label):
  """Standard errors between the mean -log p of real draws and the entropy."""
  nats = -np.array([captions.log_prob(label, text) for text in drawn(label)])
  return abs(nats.mean() - captions.entropy(label)) / (nats.std(ddof=1) / math.sqrt(len(nats)) + 1e-12)


@pytest.mark.parametrize('label', range(6))
def test_the_mean_surprise_of_real_draws_is_the_entropy(label):
  assert deviation(label) < 4


@pytest.mark.parametrize('label, text, right', [
  (0, 'a hero with a bald head in a red robe', True), (5, 'a hero with a bald head in a red robe', False),
  (0, 'a side-facing hero with short red hair in a red robe', False),
  (5, 'a side-facing hero with short red hair in a red robe', True),
  (0, 'a hero with a orange bun in a red robe', False), (0, 'a hero with an orange bun in a red robe', True),
  (0, 'a hero with long red hair in a red robe, bearded', False),  # long hair and beards exclude each other
  (0, 'a hero with a red cap in a red robe, bearded', True),
  (0, 'a hero with a red helmet in a red robe', False), (0, 'a hero with a helmet in red armor', True),
  (0, 'a hero with a helmet in a red armor', False), (5, 'a side-facing hero with a helmet in a red dress', False),
  (0, 'a hero with a helmet in red armor, holding a gold bow and a red shield', True),
  (0, 'a hero with a helmet in red armor, holding a red shield and a gold bow', False),
  (0, 'a hero with a helmet in red armor ', False), (0, '', False), (2, '', False),
  (2, 'a pale red apple, bitten', True), (2, 'a pale red carrot, bitten', False),
  (1, 'a red slime with red bubbles and one eye', False), (1, 'a red slime with blue bubbles and one eye', True)])
def test_captions_parse_for_their_class_alone(label, text, right):
  assert captions.parses(label, text) == right


# ---- the table
def test_samples_of_the_grammar_are_right_and_others_are_counted(monkeypatch):
  labels = [0, 1, 2, 3, 4, 5] * 50
  texts = captions.draw(labels, 3)
  rows = {name.split(': ')[1]: value for name, value in captions.of_samples(labels, texts, set(texts[:30]), 'x')}
  assert rows['captions of their class'].value == 1 and .09 < rows['also in training'].value < .12
  low, high = rows['that less the entropy of their classes'][2:4]
  assert low < 0 < high
  turned = captions.of_samples(labels, [*texts[1:], texts[0]], set(), 'x')  # each has the class of its neighbour
  assert dict(turned)['x: captions of their class'].value == 0 and len(turned) == 3
  same = dict(captions.of_samples([2] * 100, [texts[2]] * 100, set(), 'x'))
  assert same['x: distinct'] == .01 and same['x: captions of their class'].value == 1


def test_a_run_of_other_data_is_refused(monkeypatch):
  for gives, classes, can in (('images', captions.CLASSES, ['logits']), ('texts', ('a', 'b'), ['logits']),
                              ('texts', captions.CLASSES, ['denoise'])):
    run = SimpleNamespace(task=SimpleNamespace(gives=gives), classes=classes, can=can,
                          config=SimpleNamespace(data='folder(x)', task='image', objective='gaussian'))
    monkeypatch.setattr(open_model, 'load', lambda workdir: SimpleNamespace(run=run))
    with pytest.raises(InputError, match='--workdir=there: .*folder.*captions_discrete'):
      captions.open_run('there')
