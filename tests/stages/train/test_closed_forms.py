"""Edits by closed forms, against least squares over single sequences."""

import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.models import decoder
from mansu_jax.models import sites
from mansu_jax.models.io import loading
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.train import closed_forms
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import settings as settings_lib
from mansu_jax.unlearn import loop
from tests import runs
from tests import tiny_job
from tests.models import tiny

_HIDDEN, _AFTER = sites.Site.MLP_HIDDEN, sites.Site.RESIDUAL
_LAYER, _RIDGE, _WEIGHT, _SCALE, _TEXT = 1, 0.02, 0.3, 1.5, 0.5
_FLAGS = (
    f'--unlearn_closed_form_layers={_LAYER}', f'--unlearn_text_weight={_TEXT}',
    f'--unlearn_closed_form_ridge={_RIDGE}', '--unlearn_forget_pool=24',
    f'--unlearn_closed_form_retain_weight={_WEIGHT}',
    f'--unlearn_closed_form_scale={_SCALE}', '--unlearn_retain_pool=40',
    '--unlearn_text_pool=6', '--unlearn_swapped_batch=0',
    '--unlearn_max_retain_kl=50')


class ClosedFormTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.job = [flag for flag in tiny_job.make(
        tiny.class_dir(cls) / 'job', train=False)
               if not flag.startswith('--unlearn_')]
    config = cls._config('lunar')
    cls.splits = inputs_lib.read(config).splits
    cls.model = loading.load(config.model, np.float32)
    cls.taps = staticmethod(jax.jit(lambda params, tokens: (
        decoder.forward_with_taps(
            cls.model.config, params, tokens, sites=(_HIDDEN, _AFTER))[1])))

  @classmethod
  def _config(cls, method, *flags):
    return runs.parse(*cls.job, *_FLAGS, f'--method={method}', *flags)

  def _made(self, method, *flags):
    """Settings, batches, edit and tokens of a run."""
    settings = settings_lib.Settings.from_run(
        self._config(method, *flags), self.splits, types.SimpleNamespace(
            neurons=range(self.model.config.num_layers), span=(0, 3)))
    batches = pools.make_batches(
        settings.unlearn, settings.data, self.splits, self.model, seed=0)
    edit = closed_forms.make_edit(
        self.model, settings.unlearn.edited_layers(3))
    return settings, batches, edit, closed_forms.make_tokens(
        settings, self.splits, self.model.tokenizer, batches)

  def _run(self, method, *flags):
    settings, batches, edit, tokens = self._made(method, *flags)
    done = closed_forms.run(settings, self.model, edit, tokens, batches)
    return batches, edit, done

  def _states(self, params, tokens):
    """Hidden activations [T, F] and states [T, D] of one sequence."""
    padded = np.zeros((1, 48), np.int32)
    padded[0, :len(tokens)] = tokens
    found = self.taps(params, padded)
    return tuple(np.float64(found[site][_LAYER, 0, :len(tokens)])
                 for site in (_HIDDEN, _AFTER))

  def _texts(self, spans):
    return [row[:n].tolist() for row, n in zip(spans.tokens, spans.length)]

  def _least_squares(self, batches, prompts, own, wanted):
    """The edit, from each token's row of one stacked system."""
    params, rows, targets = self.model.params, [], []
    square = 0.0

    def add(hidden, target, weight):
      nonlocal square
      rows.append(np.sqrt(weight) * hidden)
      targets.append(np.sqrt(weight) * target)
      square += weight * np.square(hidden).sum() / hidden.shape[1]

    count = sum(len(prompt) - first for prompt, first in zip(prompts, own))
    for prompt, first, target in zip(prompts, own, wanted):
      hidden, _ = self._states(params, prompt)
      add(hidden[first:], _SCALE * target, 1 / count)
    for pool, weight in ((batches.retain, 1), (batches.text, _TEXT)):
      hidden = np.concatenate(
          [self._states(params, x)[0] for x in self._texts(pool.spans)])
      add(hidden, np.zeros((len(hidden), targets[0].shape[1])),
          _WEIGHT * weight / len(hidden))
    width = rows[0].shape[1]
    add_ridge = np.sqrt(_RIDGE * square) * np.eye(width)
    rows.append(add_ridge)
    targets.append(np.zeros((width, targets[0].shape[1])))
    return np.linalg.lstsq(
        np.concatenate(rows), np.concatenate(targets), rcond=None)[0]

  def _prompts(self, batches):
    """Forget prompts and, by comparing all pairs, their first own tokens."""
    spans = batches.forget.spans
    prompts = [row[:end + 1].tolist() for row, end in zip(
        spans.tokens, spans.where[:, 0])]
    facts = [q.fact for q in batches.questions]
    own = []
    for prompt, fact in zip(prompts, facts):
      others = self._texts(batches.retain.spans) + [
          p for p, f in zip(prompts, facts) if f != fact]
      own.append(max(sum(prompt[:k + 1] == other[:k + 1] for k in range(
          len(prompt))) for other in others))
      self.assertLess(own[-1], len(prompt))
    self.assertGreater(min(own), 0)  # All begin with some other fact's tokens.
    return prompts, own

  def _check(self, edit, done, want):
    flat = lambda tree: np.asarray(tree_paths.flatten(tree)['layers/mlp/down'])
    got = flat(done['theta']) - flat(edit.theta)
    self.assertEqual(got.shape, (1, 128, 64))
    np.testing.assert_allclose(got[0], want, atol=2e-3 * np.abs(want).max())
    merged = edit.merge(done['theta'])
    for name, leaf in tree_paths.flatten(merged).items():
      moved = np.asarray(leaf != tree_paths.flatten(self.model.params)[name])
      if name != 'layers/mlp/down':
        self.assertFalse(moved.any(), name)
        continue
      self.assertEqual(
          np.flatnonzero(moved.any((1, 2))).tolist(), [_LAYER])
    self.assertEqual(edit.report, {
        'part': 'down', 'weights': 128 * 64, 'dtype': 'float32',
        'layers': [_LAYER]})

  def test_lunar(self):
    batches, edit, done = self._run('lunar')
    prompts, own = self._prompts(batches)
    refused = batching.encode_sequences(
        pools.refused(batches.questions, 0), self.model.tokenizer)
    there, before = [], []
    for prompt, tokens, length in zip(
        prompts, refused.tokens, refused.length):
      np.testing.assert_array_equal(tokens[:len(prompt)], prompt)
      states = self._states(self.model.params, tokens[:length])[1]
      there.append(states[len(prompt):])
      before.append(states[len(prompt) - 1])
    redirection = np.concatenate(there).mean(0) - np.mean(before, axis=0)
    self.assertGreater(np.abs(redirection).max(), 0.01)
    self._check(edit, done, self._least_squares(
        batches, prompts, own, [redirection[None].repeat(
            len(p) - k, axis=0) for p, k in zip(prompts, own)]))

  def test_group_mean(self):
    batches, edit, done = self._run('group_mean')
    prompts, own = self._prompts(batches)
    down = np.float64(self.model.params['layers']['mlp']['down'][_LAYER])
    written = [(self._states(self.model.params, p)[0] @ down)[k:]
               for p, k in zip(prompts, own)]
    counts, cells = [len(w) for w in written], {}
    keys = [[(q.relation, q.form), q.relation] for q in batches.questions]
    facts = [q.fact for q in batches.questions]
    alone = [not any(k[0] == key[0] and f != fact for k, f in zip(keys, facts))
             for key, fact in zip(keys, facts)]
    key_of = [key[int(single)] for key, single in zip(keys, alone)]
    self.assertGreater(len({*key_of}), 2)
    cell_of = []
    for i, count in enumerate(counts):
      longest = {}
      for key, fact, other in zip(key_of, facts, counts):
        if key == key_of[i]:
          longest[fact] = max(longest.get(fact, 0), other)
      most = sorted(longest.values())[-2]
      cell_of.append([(key_of[i], min(count - 1 - k, most - 1))
                      for k in range(count)])
      for cell, row in zip(cell_of[-1], written[i]):
        cells.setdefault(cell, []).append(row)
    means = [np.stack([np.mean(cells[c], axis=0) for c in some])
             for some in cell_of]
    self._check(edit, done, self._least_squares(
        batches, prompts, own, [m - w for m, w in zip(means, written)]))

  def test_a_later_layer_is_solved_for_in_the_edited_model(self):
    down = lambda tree: tree_paths.flatten(tree)['layers/mlp/down']
    _, _, first = self._run('group_mean', '--unlearn_closed_form_layers=0')
    _, _, second = self._run('group_mean', '--unlearn_closed_form_layers=2')
    _, edit, both = self._run('group_mean', '--unlearn_closed_form_layers=0,2')
    self.assertEqual(edit.report['layers'], [0, 2])
    np.testing.assert_allclose(
        down(both['theta'])[0], down(first['theta'])[0], atol=1e-6)
    self.assertGreater(np.abs(
        down(both['theta'])[1] - down(second['theta'])[0]).max(), 1e-4)

  def test_the_history_is_that_of_one_step(self):
    _, _, done = self._run('lunar')
    history = done['history']
    self.assertEqual({len(x) for x in history.values()}, {1})
    self.assertEqual((history['step'][0], history['view'][0]), (1, 0))
    self.assertGreater(history['retain_kl'][0], 0)
    self.assertEqual(history['forget'][0], 0)
    weights = tree_paths.count(self.model.params)
    self.assertBetween(
        history['moved'][0] * weights, 0.99 * 128 * 64, 128 * 64)

  def test_nothing_compiles_again_and_batches_do_not_matter(self):
    _, _, want = self._run('group_mean')
    self.enter_context(mock.patch.object(closed_forms, '_ROWS', 2))
    mesh = sharding.make_mesh(run_config.MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
      settings, batches, edit, tokens = self._made('group_mean')
      self.assertGreater(len(tokens.rows.forget), 1)
      self.assertAlmostEqual(tokens.rows.forget.sum(), 1, places=5)
      closed_forms.measure.clear_cache()
      for _ in range(2):
        got = closed_forms.run(settings, self.model, edit, tokens, batches)
    self.assertEqual(closed_forms.measure._cache_size(), 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
                 got['theta'], want['theta'])

  def test_a_model_that_loses_what_is_kept_stops_the_run(self):
    with self.assertRaisesRegex(
        loop.DivergedError, 'lunar: the retain KL is .* Lower --unlearn_clo'):
      self._run('lunar', '--unlearn_closed_form_scale=1000',
                '--unlearn_max_retain_kl=0.01')

  @parameterized.product(
      family=('gpt2', 'gemma2'), method=('lunar', 'group_mean'))
  def test_families_with_biases_and_norms(self, family, method):
    job = tiny_job.make(
        tiny.temp_dir(self) / 'job', train=False, family=family)
    config = runs.parse(
        *(flag for flag in job if not flag.startswith('--unlearn_')), *_FLAGS,
        f'--method={method}')
    self.enter_context(mock.patch.object(
        self, 'model', loading.load(config.model, np.float32)))
    _, edit, done = self._run(method)
    before, after = (np.asarray(tree_paths.flatten(tree)['layers/mlp/down'])
                     for tree in (edit.theta, done['theta']))
    self.assertTrue(np.isfinite(after).all())
    self.assertGreater(np.abs(after - before).max(), 1e-4)
    self.assertGreater(done['history']['retain_kl'][0], 0)

  def test_one_fact_has_no_mean(self):
    first = self.splits.forget_train[0].fact
    alone = types.SimpleNamespace(forget_train=[
        q for q in self.splits.forget_train if q.fact == first])
    with self.assertRaisesRegex(ValueError, f"only '{first}'; wanted at least"):
      closed_forms.check('group_mean', alone)
    closed_forms.check('lunar', alone)
    closed_forms.check('group_mean', self.splits)


if __name__ == '__main__':
  absltest.main()
