"""Embeddings of a CLIP as data of priors and as a condition of decoders, with towers that are known exactly."""
import jax
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.generation.embedding_edits import towards, truncated
from diffusion.setup.choices import make
from diffusion.tasks import codes, towers
from tests.clips import opened, pictures

DATA = pictures()
OPEN = opened(DATA)
SPECS = ('embeddings(clip)', 'codes(clip, components=4, buckets=4, dots=4)', 'unclip(clip)')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path))


def task_of(spec, open_model=OPEN, data=DATA, **given):
  return make('task', spec, data=data, open_model=open_model, **given)


def truth():
  """Unit vectors of the images, float64 [N, D]."""
  x = DATA.arrays['images'].reshape(len(DATA.arrays['images']), -1).astype(float) / 127.5 - 1
  z = x @ OPEN('').weights.params['image'].astype(float)
  return z / np.linalg.norm(z, axis=1, keepdims=True)


def rows(task, n=8, key=None):
  batch = task.batch(task.prepare(task.frozen, DATA), np.arange(n))
  return task.encode(task.frozen, key, batch)


# ---- embeddings
def test_embeddings_have_mean_0_and_covariance_1_and_come_back_with_length_1():
  task, z = task_of('embeddings(clip, whiten=1)'), truth()
  x0, cond = rows(task, len(z))
  x0 = np.asarray(x0, np.float64)
  np.testing.assert_allclose(x0.mean(0), 0, atol=2e-3)
  np.testing.assert_allclose(np.cov(x0.T, bias=True), np.eye(6), atol=5e-3)  # columns are float16
  gaps = z[1:] - z[:-1]  # Mahalanobis' distance
  expected = np.einsum('ni,ij,nj->n', gaps, np.linalg.inv(np.cov(z.T, bias=True)), gaps)
  np.testing.assert_allclose(np.sum((x0[1:] - x0[:-1]) ** 2, 1), expected, rtol=1e-2)
  np.testing.assert_allclose(task.decode((), x0.astype(np.float32), cond)['embedding'], z, atol=1e-3)
  longer = x0 + (z @ task.fitted['pca_axes']) / np.sqrt(task.fitted['pca_variance'])  # z is added once more
  outputs = task.decode((), longer.astype(np.float32), cond)
  np.testing.assert_allclose(outputs['length'], 2, rtol=1e-3)
  np.testing.assert_allclose(outputs['embedding'], z, atol=1e-3)


@pytest.mark.parametrize('whiten', (0, .5, 1))
def test_variances_follow_the_power_and_are_1_on_average(whiten):
  task, z = task_of(f'embeddings(clip, whiten={whiten})'), truth()
  x0 = np.asarray(rows(task, len(z))[0], np.float64)
  eigenvalues = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2 / len(z)
  np.testing.assert_allclose(x0.var(0).mean(), 1, rtol=3e-3)
  np.testing.assert_allclose(x0.var(0) / x0.var(0)[0], (eigenvalues / eigenvalues[0]) ** (1 - whiten), rtol=1e-2)
  np.testing.assert_allclose(task.decode((), x0.astype(np.float32), None)['embedding'], z, atol=1e-3)


@pytest.mark.parametrize('spec', SPECS)
def test_a_prompt_gives_what_the_caption_gives_and_none_gives_what_null_gives(spec):
  task = task_of(spec)
  _, cond = rows(task)
  captions = [str(text) for text in DATA.arrays['captions'][:8]]
  asked = task.ask(dict(prompt=captions), np.arange(8), 0).cond
  rest = [name for name in cond if name not in ('dot', 'embedding')]
  for name in rest:
    np.testing.assert_allclose(asked[name], cond[name], atol=3e-3)
  nothing = task.ask(dict(prompt='none'), np.arange(8), 0).cond
  jax.tree.map(np.testing.assert_array_equal, nothing, jax.device_get(task.null(cond)))


def test_the_score_of_a_sample_orders_it_by_its_cosine_with_the_text():
  task = task_of('embeddings(clip)')
  x0, cond = rows(task)
  z, text = truth()[:8], np.asarray(cond['text_embedding'], np.float64)
  cosine = np.sum(z * text, 1) / np.linalg.norm(text, axis=1)
  found = np.asarray(task.score(task.decode((), x0, cond), cond))
  np.testing.assert_allclose(found, cosine * 6 ** .5, atol=3e-3)


# ---- codes
def test_the_error_of_principal_components_is_the_sum_of_the_discarded_eigenvalues():
  z = np.random.default_rng(0).normal(size=(500, 5)) * [3, 1, 2, .1, .5] @ np.linalg.qr(np.ones((5, 5)) + np.eye(5))[0]
  eigenvalues = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2 / len(z)
  found = towers.principal(z)
  np.testing.assert_allclose(found['pca_variance'], eigenvalues, rtol=1e-5)
  for k in range(6):
    axes = found['pca_axes'][:, :k].astype(float)
    error = np.mean(np.sum((z - z.mean(0) - (z - z.mean(0)) @ axes @ axes.T) ** 2, 1))
    np.testing.assert_allclose(error, eigenvalues[k:].sum(), rtol=1e-4, atol=1e-10)


def measured(buckets, components=3):
  rng = np.random.default_rng(2)
  z = rng.normal(size=(960, 3)) @ np.diag([1., .5, .2])
  return z, codes.measure(z, rng.normal(size=z.shape), components, buckets, 4)


def test_buckets_hold_equal_numbers_and_codes_come_back_as_the_means_of_theirs():
  z, found = measured(8)
  code = np.asarray(codes.codes_of(found, z.astype(np.float32)))
  assert all(np.ptp(np.bincount(column, minlength=8)) <= 2 for column in code.T)  # float32 at an edge
  y = (z - z.mean(0)) @ found['pca_axes']
  for k in range(3):
    expected = [y[code[:, k] == b, k].mean() for b in range(8)]
    np.testing.assert_allclose(found['code_means'][k], expected, atol=5e-3)
  again = codes.codes_of(found, codes.vectors_of(found, code))
  np.testing.assert_array_equal(again, code)


def test_more_buckets_lose_less_and_the_number_of_components_follows_from_one_percent():
  errors = []
  for buckets in (2, 8, 32, 320):
    z, found = measured(buckets)
    errors.append(np.mean(np.sum((codes.vectors_of(found, codes.codes_of(found, z)) - z) ** 2, 1)))
  assert errors[0] > 2 * errors[1] > 8 * errors[2] > 16 * errors[3] and errors[3] < 1e-3
  variance = np.array([.5, .3, .1905, .006, .0035])
  z = np.random.default_rng(0).normal(size=(4000, 5))
  z = (z - z.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(z.T, bias=True))).T * variance ** .5
  assert codes.measure(z, z, 0, 8, 4)['pca_axes'].shape == (5, 3)  # .0095 is lost with three, .2 with two


def test_the_cosine_is_that_of_the_example_in_training_and_one_of_the_upper_half_when_asked():
  task = task_of(SPECS[1])
  x0, cond = rows(task, 64)
  assert x0.shape == (64, 4) and x0.dtype == np.int32
  cosines = np.sum(truth() * np.asarray(cond['text_embedding']), 1)
  dots = np.asarray(cond['dot'])
  np.testing.assert_array_equal(np.bincount(dots, minlength=5), [16, 16, 16, 16, 0])
  assert max(cosines[dots == 1]) < min(cosines[dots == 2]) + 1e-2
  asked = task.ask(dict(prompt='a red thing'), np.arange(400), 0).cond['dot']
  assert abs(np.mean(asked == 2) - .5) < .1 and set(asked) == {2, 3}
  np.testing.assert_array_equal(task.ask(dict(prompt='a red thing'), [7], 0).cond['dot'], asked[7:8])


# ---- the decoder
def test_a_decoder_takes_embeddings_of_images_of_a_prior_and_of_texts():
  task = task_of('unclip(clip)')
  x0, cond = rows(task)
  np.testing.assert_allclose(cond['embedding'], truth()[:8] * 6 ** .5, atol=3e-3)
  np.testing.assert_allclose(task.embed(DATA.arrays['images'][:8]), truth()[:8], atol=1e-5)
  z = truth()[8:11].astype(np.float32)
  given = task.ask(dict(prompt='a red thing', embedding=z), np.arange(3), 0).cond
  np.testing.assert_allclose(given['embedding'], z * 6 ** .5, rtol=1e-6)
  text = task_of('embeddings(clip)').ask(dict(prompt='a red thing'), np.arange(3), 0).cond['text_embedding']
  asked = task.ask(dict(prompt='a red thing', embedding='text'), np.arange(3), 0).cond
  np.testing.assert_array_equal(asked['embedding'], text)
  alone = task.ask(dict(prompt='a red thing'), np.arange(3), 0)
  assert not np.any(alone.cond['embedding']) and '--chain=' in ' '.join(alone.notes)


def test_texts_and_embeddings_are_left_out_in_their_shares_and_independently():
  task = task_of('unclip(clip, text_dropout=.5, embedding_dropout=.25)')
  prepared = task.prepare(task.frozen, DATA)
  found = []
  for i in range(40):
    _, cond = task.encode((), jax.random.key(i), task.batch(prepared, np.arange(64)))
    no_text = np.all(np.asarray(cond['tokens']) == np.asarray(task.null(cond)['tokens']), 1)
    found.append(np.stack([no_text, ~np.any(np.asarray(cond['embedding']), 1)]))
  text, embedding = np.concatenate(found, 1)
  assert abs(text.mean() - .5) < .04 and abs(embedding.mean() - .25) < .03
  assert abs(np.mean(text & embedding) - .125) < .03
  assert np.any(np.asarray(rows(task)[1]['embedding']), 1).all()  # without a key nothing is


def test_turning_by_nothing_is_the_embedding_and_all_components_give_it_back():
  z = truth()[0].astype(np.float32)
  target, source = truth()[1:3].astype(np.float32)
  path = towards(z, target, source, np.linspace(0, 1, 5))
  np.testing.assert_array_equal(path[0], z)
  np.testing.assert_allclose(path[-1], (target - source) / np.linalg.norm(target - source), atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(path, axis=1), 1, atol=1e-6)
  steps = np.arccos(np.clip(np.sum(path[1:] * path[:-1], 1), -1, 1))
  np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
  fitted = task_of('unclip(clip)').fitted
  np.testing.assert_allclose(truncated(z, fitted['pca_mean'], fitted['pca_axes'], 6), z, atol=1e-5)
  gaps = [np.linalg.norm(truncated(z, fitted['pca_mean'], fitted['pca_axes'], k) - z) for k in (0, 6)]
  assert gaps[0] > .1 > gaps[1]


# ---- what is refused
@pytest.mark.parametrize('spec', SPECS)
def test_a_checkpoint_needs_no_data_and_refuses_another_clip(spec):
  task = task_of(spec)
  stored = dict(data=None, facts=task.facts, fitted=task.fitted)
  again = task_of(spec, **stored)
  batch = task.batch(task.prepare(task.frozen, DATA), np.arange(3))
  jax.tree.map(np.testing.assert_array_equal, *(t.encode((), None, batch) for t in (task, again)))
  with pytest.raises(InputError, match=r"clip='clip': its weights have the hash .* embeddings of .*give that CLIP"):
    task_of(spec, opened(DATA, seed=5), **stored)
  other = dict(tokens=task.facts['tokens'] | dict(length=9))
  with pytest.raises(InputError, match="clip='clip': its tokenizer is .*give the CLIP that it was trained with"):
    task_of(spec, data=None, facts=task.facts | other, fitted=task.fitted)


@pytest.mark.parametrize('spec, open_model, data, message', [
  ('embeddings(clip)', OPEN, pictures(side=8), r'takes images of \[4, 4, 1\], and these have \[8, 8, 1\]'),
  ('unclip(clip)', opened(DATA, can=('denoise',)), DATA, 'no towers; give the work directory of a CLIP'),
  ('embeddings(clip, whiten=2)', OPEN, DATA, 'whiten=2: expected a number from 0'),
  ('unclip(clip, text_dropout=2)', OPEN, DATA, 'text_dropout=2: expected a share from 0 to 1'),
  ('codes(clip, components=7)', OPEN, DATA, 'components=7: an embedding has 6 numbers'),
  ('codes(clip, components=2, buckets=65)', OPEN, DATA, 'there are 64 training examples; use fewer'),
  ('codes(clip, buckets=1)', OPEN, DATA, 'buckets=1: expected a whole number of at least 2')])
def test_what_does_not_fit_is_refused(spec, open_model, data, message):
  with pytest.raises(InputError, match=message):
    task_of(spec, open_model, data)


@pytest.mark.parametrize('wanted, message', [
  (np.zeros((2, 5), np.float32), r'expected finite unit vectors \[2, 6\], got \[2, 5\]'),
  ('picture', "embedding='picture': expected 'text'")])
def test_an_embedding_that_is_none_is_refused(wanted, message):
  with pytest.raises(InputError, match=message):
    task_of('unclip(clip)').ask(dict(prompt='a red thing', embedding=wanted), np.arange(2), 0)
