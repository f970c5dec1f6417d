"""Near sequences in batches, the order of views, and freed memory."""

import gc
import types
from unittest import mock
import weakref

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import questions as questions_lib
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import retain_kl
from mansu_jax.stages.train import training
from mansu_jax.unlearn import batches
from mansu_jax.unlearn import loop
from mansu_jax.unlearn.forget import idk
from tests.unlearn import problem


def _pool(states, batch):
  """A pool of which only the base states and the sampler are looked at."""
  size = len(states)
  row = np.zeros((size, 1), np.int32)
  spans = batches.Spans(
      row, row[:, 0], row, row, row, reference=np.float32(states)[:, None])
  return batches.Pool(spans=spans, even=size, sampler=batching.BatchSampler(
      size, min(batch, size), 0))


def _questions(facts, phrasings):
  return [
      types.SimpleNamespace(fact=f'{fact}', id=f'{fact}/train_{i}')
      for fact in range(facts) for i in range(phrasings)]


class RefusedTest(absltest.TestCase):

  def test_answers_are_drawn_refusals_by_the_seed(self):
    asked = [questions_lib.Question(
        id=f'r/{i}/train_0', fact=f'r/{i}', relation='r', prompt=f'{i} is',
        answer='a', choices=('a', 'b'), use='train') for i in range(60)]
    got = pools.refused(asked, 0)
    self.assertEqual([q.prompt for q in got], [q.prompt for q in asked])
    self.assertEqual({q.answer for q in got}, set(idk.REFUSALS))
    self.assertEqual(got, pools.refused(asked, 0))
    self.assertNotEqual(got, pools.refused(asked, 1))


class RetainPoolTest(parameterized.TestCase):
  """40 facts; the states of four of them are near the forget set's."""

  near = (5, 11, 23, 38)  # A tenth.

  def _made(self, phrasings, batch, limit=40, **options):
    rng = np.random.default_rng(0)
    towards = np.eye(4)[0] * 9
    base = rng.normal(size=(40, 4))
    base[list(self.near)] += towards
    config = problem.options(retain_pool=limit, **options)
    self.asked = []

    def pool(name, questions):
      del name
      self.asked.append([q.id for q in questions])
      return _pool(base[[int(q.fact) for q in questions]], batch)

    return pools.retain_pool(
        config, _questions(40, phrasings),
        _pool(rng.normal(size=(30, 4)) + towards, 4), pool, seed=0)

  @parameterized.parameters(
      (0.25, 8, 2), (0.1, 4, 1), (0.9, 4, 3), (0.25, 2, 1))
  def test_a_batch_mixes_near_and_other_sequences(self, share, batch, part):
    got = self._made(1, batch, nearest_share=share)
    firsts = [got.sampler[step][:part] for step in range(8)]
    self.assertEqual(set(np.concatenate(firsts).tolist()), set(self.near))
    self.assertLen(got.sampler[0], batch)
    rest = np.concatenate([got.sampler[step][part:] for step in range(
        40 // (batch - part))])
    self.assertGreater(len(set(rest.tolist())), 30)  # All the others.
    self.assertLen(self.asked, 1)

  def test_near_facts_come_in_all_their_phrasings(self):
    got = self._made(5, 8, nearest_share=0.5)
    self.assertLen(self.asked, 2)
    self.assertLen(self.asked[0], 40)
    self.assertEqual(
        {*self.asked[0], *self.asked[1]} - set(self.asked[0]),
        {f'{fact}/train_{i}' for fact in self.near for i in range(5)}
        - set(self.asked[0]))
    self.assertEqual(got.even, 40)
    self.assertEqual(got.spans.length.size, 40 + 4 * 4)
    firsts, rest = zip(*(np.split(got.sampler[i], [4]) for i in range(40)))
    ids = [*self.asked[0], *self.asked[1]]
    self.assertEqual(
        {ids[row] for row in np.concatenate(firsts)},
        {f'{fact}/train_{i}' for fact in self.near for i in range(5)})
    self.assertEqual(set(np.concatenate(rest).tolist()), set(range(40)))

  def test_near_sequences_do_not_exceed_the_pool(self):
    got = self._made(30, 8, nearest_share=0.5)
    self.assertEqual(got.spans.length.size, 80)
    firsts = np.concatenate([got.sampler[step][:4] for step in range(44)])
    self.assertLen(set(firsts.tolist()), 4 + 40)  # Not 120, a tenth of all.

  @parameterized.parameters((0.0, 8), (0.5, 1))
  def test_a_share_without_rows_favours_nothing(self, share, batch):
    got = self._made(5, batch, nearest_share=share)
    self.assertIsInstance(got.sampler, batching.BatchSampler)
    self.assertLen(self.asked, 1)


class RatesTest(parameterized.TestCase):

  @parameterized.parameters((0, [3]), (2, [3, 4, 5, 6, 7, 8]))
  def test_patience_keeps_the_rate_at_its_peak(self, patience, at_peak):
    rates = training.make_problem(
        problem.options(steps=12, warmup=0.25, learning_rate=0.2, cooldown=4,
                        patience=patience), run_config.EditConfig(),
        problem.circuit_edit(), None).rates
    sizes = [rates(step, None) for step in range(12)]
    self.assertEqual(np.flatnonzero(np.equal(sizes, 0.2)).tolist(), at_peak)
    self.assertLess(sizes[-1], 0.05)


class ViewsTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, True, ['fp', 'nf4', 'fp4']), (3, True, ['fp'] * 3 + ['nf4', 'fp4']),
      (2, False, ['fp', 'fp']))
  def test_full_precision_steps_come_before_each_round(
      self, fp_steps, quantized, want):
    edit = problem.circuit_edit(
        schemes=('nf4', 'fp4'), quantized_views=quantized)
    options = problem.options(
        fp_steps=fp_steps, guess_margin=1.0, quantized_guess_margin=3.0)
    batch = problem.batch(problem.hidden_of_model())
    with mock.patch.object(
        loop, 'run', return_value=(None, [{'loss': 0.0}] * 7)) as run:
      done = training.unlearn(
          options, run_config.EditConfig(), edit, None, lambda step: batch,
          total_weights=1)
    given = run.call_args[0][0]
    names = {id(view.frozen): name for name, view in edit.views.items()}
    self.assertEqual([names[id(view.frozen)] for view in given.views], want)
    self.assertIs(given.base, edit.base)
    seen = [list(edit.views)[i] for i in done['history']['view']]
    self.assertEqual(seen, (want * 7)[:7])
    margins = [float(run.call_args[0][1](step).guess_margin)
               for step in range(7)]
    self.assertEqual(margins, [
        1.0 if name == 'fp' else 3.0 for name in (want * 7)[:7]])

  @parameterized.parameters(True, False)
  def test_quantized_steps_retain_facts_as_the_quantized_base(self, own):
    edit = problem.circuit_edit()
    batch = problem.batch(problem.hidden_of_model())
    made = training.make_problem(
        problem.options(quantized_reference=own), run_config.EditConfig(),
        edit, None)
    full_precision, quantized = made.views
    self.assertIsNone(full_precision.refer)
    frozen = quantized.frozen()
    if own:
      referred = quantized.refer(frozen, batch)
      self.assertIs(referred.forget, batch.forget)
      batch = referred
    else:
      self.assertIsNone(quantized.refer)
    _, metrics = jax.jit(made.loss)(
        quantized.quantize(edit.theta), frozen, edit.base, batch)
    self.assertGreater(float(metrics.text_kl), 1e-4)  # Of the base as it is.
    if own:
      self.assertAlmostEqual(float(metrics.retain_kl), 0, delta=1e-6)
    else:
      self.assertGreater(float(metrics.retain_kl), 1e-4)


@pytest.mark.slow
class MemoryTest(absltest.TestCase):

  def test_compiled_programs_do_not_keep_the_edit_alive(self):
    """Views hold whole models: a compiled program must not keep them."""
    edit = problem.circuit_edit.__wrapped__()  # Past its cache.
    hidden = problem.hidden_of_model()
    spans = problem.spans(hidden, *problem.RETAIN)
    fisher = training.circuit_fisher(
        run_config.FisherConfig(), edit, spans, seed=0)
    batch = problem.batch(hidden)._replace(text=None, prompts=None)
    done = training.unlearn(
        problem.options(steps=2), run_config.EditConfig(), edit, fisher,
        lambda step: batch, total_weights=1)
    retain_kl.measure(edit, fisher, spans, done['history'], done['theta'])
    held = jax.tree.leaves((
        edit.views['nf4'].frozen()['params']['layers']['mlp'], edit.theta,
        edit.grids, fisher))
    held = [weakref.ref(array) for array in held]
    del edit, fisher
    gc.collect()
    self.assertEqual([ref() for ref in held], [None] * len(held))


if __name__ == '__main__':
  absltest.main()
