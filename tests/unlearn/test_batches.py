"""Training batches by hand: spans, packing, answer swap, and steps alone."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.unlearn import batches
from mansu_jax.unlearn import other_facts
from mansu_jax.unlearn import step_data

_TOKENS = np.array([
    [11, 12, 13, 14, 15, 0, 0, 0],  # Prompt 11 12 13, answer 14 15.
    [21, 22, 23, 0, 0, 0, 0, 0],  # Prompt 21 22, answer 23.
    [31, 32, 33, 34, 35, 36, 37, 38]])  # Prompt 31, answer 32 .. 38.
_MASK = np.array([
    [0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0],
    [1, 1, 1, 1, 1, 1, 1, 0]], bool)


def _spans(rows=slice(None)):
  return batches.make_spans(_TOKENS[rows], _MASK[rows])


def _state(tokens, positions, segments):
  """A stand-in for hidden states that says where it comes from."""
  del segments
  return np.stack([tokens, positions], -1).astype(np.float32)


def _referenced(rows=slice(None), **options):
  return batches.add_reference(
      _spans(rows), _state, packing.fill_rows, **options)


class SpansTest(absltest.TestCase):

  def test_by_hand(self):
    spans = _spans([0, 1])
    np.testing.assert_array_equal(spans.length, [4, 2])  # 15, 23: no inputs.
    np.testing.assert_array_equal(spans.where, [[2, 3], [1, 0]])
    np.testing.assert_array_equal(spans.labels[0], [14, 15])
    self.assertEqual(spans.labels[1, 0], 23)
    np.testing.assert_array_equal(spans.weight, [[1, 1], [1, 0]])
    np.testing.assert_array_equal(
        spans.tokens, [[11, 12, 13, 14], [21, 22, 23, 0]])
    self.assertIsNone(spans.reference)

  def test_a_sequence_may_predict_nothing(self):
    spans = batches.make_spans(_TOKENS[:2], np.array([_MASK[0], 0 * _MASK[1]]))
    np.testing.assert_array_equal(spans.weight, [[1, 1], [0, 0]])
    np.testing.assert_array_equal(spans.length, [4, 1])

  def test_take_keeps_all_parts_together(self):
    spans = _referenced().take(np.array([2, 0]))
    np.testing.assert_array_equal(spans.length, [7, 4])
    np.testing.assert_array_equal(spans.labels[1, :2], [14, 15])
    self.assertEqual(spans.reference.shape[0], 2)


class PackTest(parameterized.TestCase):

  def test_each_target_is_predicted_from_its_own_sequence(self):
    groups = [_referenced([0, 1]), _referenced([2, 2])]
    packed, starts = batches.pack(groups, packing.fill_rows)
    tokens, positions, segments = (x.ravel() for x in packed)
    for spans, start in zip(groups, starts):
      targets = batches.targets(spans, start)
      for i, length in enumerate(spans.length):
        row = slice(start[i], start[i] + length)
        np.testing.assert_array_equal(tokens[row], spans.tokens[i, :length])
        np.testing.assert_array_equal(positions[row], np.arange(length))
        self.assertLen(set(segments[row].tolist()), 1)
        self.assertEqual((segments == segments[start[i]]).sum(), length)
        own = np.flatnonzero(targets.sequence == i)
        real = np.flatnonzero(spans.weight[i])
        self.assertEqual(targets.first[i], own[0])
        self.assertLen(own, real.size)
        for p, a in zip(own, real):
          place = targets.where[p]
          self.assertEqual(tokens[place], spans.tokens[i, spans.where[i, a]])
          self.assertEqual(segments[place], segments[start[i]])
          self.assertEqual(targets.labels[p], spans.labels[i, a])
          np.testing.assert_array_equal(
              targets.reference[p], spans.reference[i, a])
    self.assertEqual((segments >= 0).sum(), 4 + 2 + 7 + 7)
    self.assertTrue(np.all(tokens[segments < 0] == 0))

  def test_targets_are_padded_with_weight_0(self):
    spans = _referenced([0, 1, 2])
    _, (starts,) = batches.pack([spans], packing.fill_rows)
    bare, padded = (batches.targets(spans, starts, n) for n in (None, 12))
    count = np.count_nonzero(spans.weight)
    self.assertLen(bare.weight, count)
    self.assertTrue(bare.weight.all())
    for name in ('where', 'labels', 'weight', 'reference', 'sequence'):
      got, want = getattr(padded, name), getattr(bare, name)
      np.testing.assert_array_equal(got[:count], want)
      self.assertLen(got, 12)
      self.assertFalse(got[count:].any())
    np.testing.assert_array_equal(padded.first, bare.first)

  def test_rows_are_added_and_refused(self):
    groups = [_spans()]
    packed, _ = batches.pack(groups, packing.fill_rows, rows=3)
    self.assertEqual(packed.tokens.shape, (3, batches.ROW))
    self.assertTrue(np.all(packed.segments[1:] == -1))
    with self.assertRaisesRegex(ValueError, 'got 3 rows'):
      batches.pack(groups, packing.one_per_row, rows=2)

  def test_long_sequences_make_long_rows(self):
    tokens = np.arange(200).reshape(2, 100)
    mask = np.zeros(tokens.shape, bool)
    mask[0, 90], mask[1, 3] = True, True
    packed, starts = batches.pack(
        [batches.make_spans(tokens, mask)], packing.fill_rows)
    self.assertEqual(packed.tokens.shape[1], 91)
    np.testing.assert_array_equal(packed.tokens.ravel()[starts[0]], [0, 100])


class ReferenceTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 16)
  def test_the_state_at_each_predicted_position(self, batch_rows):
    calls = []
    def hidden(*packed):
      calls.append(packed[0].shape)
      return _state(*packed)
    spans = batches.add_reference(
        _spans(), hidden, lambda lengths, capacity: [[2], [0, 1]],
        batch_rows=batch_rows)
    for i in range(3):
      for a in np.flatnonzero(spans.weight[i]):
        at = spans.where[i, a]
        np.testing.assert_array_equal(
            spans.reference[i, a], [_TOKENS[i, at], at])
    self.assertLen(set(calls), 1)  # One compiled shape.


class AnswerSwapTest(parameterized.TestCase):

  def test_swap_answers_joins_prompts_with_other_answers(self):
    spans = _referenced()
    own, other = spans.take(np.array([0, 2, 1])), spans.take(
        np.array([1, 0, 2]))
    got = batches.swap_answers(own, other)
    # 11 12 13 [23]; 31 [14 15]; 21 22 [32 .. 38]. Last tokens are no inputs.
    np.testing.assert_array_equal(got.length, [3, 2, 8])
    for row, want in zip(got.tokens, (
        [11, 12, 13], [31, 14], [21, 22, 32, 33, 34, 35, 36, 37])):
      np.testing.assert_array_equal(row[:len(want)], want)
    np.testing.assert_array_equal(got.weight.sum(1), [1, 2, 7])
    np.testing.assert_array_equal(got.where[0, :1], [2])
    np.testing.assert_array_equal(got.where[1, :2], [0, 1])
    np.testing.assert_array_equal(got.where[2], np.arange(1, 8))
    np.testing.assert_array_equal(got.labels[0, :1], [23])
    np.testing.assert_array_equal(got.labels[1, :2], [14, 15])
    np.testing.assert_array_equal(got.labels[2], np.arange(32, 39))
    # References are the base's states at the other's own prompt and answer.
    np.testing.assert_array_equal(got.reference[0, 0], [22, 1])
    np.testing.assert_array_equal(got.reference[1, :2], [[13, 2], [14, 3]])
    np.testing.assert_array_equal(got.reference[2, 0], [31, 0])

  def test_answer_swap_with_oneself_changes_nothing(self):
    spans = _referenced()
    got = batches.swap_answers(spans, spans)
    for i, length in enumerate(spans.length):
      np.testing.assert_array_equal(
          got.tokens[i, :length], spans.tokens[i, :length])
    for name in ('length', 'where', 'labels', 'weight', 'reference'):
      np.testing.assert_array_equal(getattr(got, name), getattr(spans, name))


class NearestTest(absltest.TestCase):

  def test_nearest_ranks_by_distance_to_any_part(self):
    rng = np.random.default_rng(0)
    noise = lambda *shape: 0.05 * rng.normal(size=shape)
    common = 50 * np.ones(6)
    one, other = 3 * np.eye(6)[:2]  # Two parts: their centre is neither.
    forget = common + np.concatenate([
        one + noise(30, 6), other + noise(30, 6), [5 * np.eye(6)[3]]])
    retain = common + 2 * np.eye(6)[4] + noise(40, 6)
    for row, share in ((31, 8), (7, 3), (22, 2), (3, 1)):
      retain[row] += share * (one if row % 2 else other)
    retain[12] = common + 9 * np.eye(6)[3]  # Near a single one.
    got = batches.nearest(retain, forget, len(retain) // 10).tolist()
    self.assertCountEqual(got, [31, 7, 22, 3])
    self.assertEqual([row for row in got if row % 2], [31, 7, 3])

  def test_nearest_gives_at_least_one_and_accepts_zero_directions(self):
    states = np.ones((3, 4))
    self.assertLen(batches.nearest(states, states, 0), 1)


class BatchesTest(parameterized.TestCase):

  def _pool(self, n, batch, seed, long=False):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 9, n)
    if long:
      lengths[0] = 90  # A rare text window that is longer than a row.
    tokens = rng.integers(1, 99, (n, lengths.max() + 1))
    mask = np.zeros(tokens.shape, bool)
    for i, length in enumerate(lengths):
      mask[i, length - 1 - rng.integers(1, 3):length - 1] = True
    spans = batches.add_reference(
        batches.make_spans(tokens, mask), _state, packing.fill_rows)
    return batches.Pool(
        spans=spans, even=n, sampler=batching.BatchSampler(n, batch, seed))

  def _make(self, *, seed=0, steps=6, answer_swap=False, long=False):
    forget = self._pool(7, 3, 1)
    partners = other_facts.swap_partners(
        ['r'] * 7, ['r'] * 7, ['t'] * 7,
        list(map(str, range(7)))) if answer_swap else None
    return batches.Batches(
        forget=forget, retain=self._pool(9, 4, 2),
        text=self._pool(8, 1, 3, long), prompts=forget.spans,
        partners=partners, fill=packing.fill_rows, steps=steps, seed=seed)

  def _assert_equal(self, a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)

  def test_joined_spans_are_the_same_sequences(self):
    short, long = self._pool(7, 3, 1).spans, self._pool(5, 3, 2, True).spans
    got = batches.join([short, long])
    for part, rows in ((short, range(7)), (long, range(7, 12))):
      for i, row in enumerate(rows):
        for name in batches.Spans._fields:
          want, found = getattr(part, name)[i], getattr(got, name)[row]
          if want.ndim:
            np.testing.assert_array_equal(found[:len(want)], want)
            self.assertFalse(found[len(want):].any())
          else:
            self.assertEqual(found, want)

  @parameterized.parameters(False, True)
  def test_a_batch_depends_on_its_step_only(self, answer_swap):
    first = self._make(answer_swap=answer_swap)
    wanted = [first(step) for step in range(6)]
    other = self._make(answer_swap=answer_swap)
    for step in (5, 0, 3, 3):
      self._assert_equal(other(step), wanted[step])
    with self.assertRaises(AssertionError):
      self._assert_equal(wanted[0], wanted[1])

  def test_partners_change_by_step_and_seed(self):
    labels = lambda seed: [
        self._make(answer_swap=True, seed=seed)(s).forget.labels
        for s in range(6)]
    with self.assertRaises(AssertionError):
      self._assert_equal(labels(0), labels(1))
    self._assert_equal(labels(1), labels(1))

  @parameterized.product(answer_swap=(False, True), long=(False, True))
  def test_all_steps_have_one_shape(self, answer_swap, long):
    made = self._make(answer_swap=answer_swap, long=long, steps=8)
    shapes = {str(jax.tree.map(np.shape, made(s))) for s in range(8)}
    self.assertLen(shapes, 1)

  def test_batch_parts_follow_the_samplers(self):
    made = self._make()
    batch = made(4)
    for part, pool in ((batch.forget, made.forget), (
        batch.retain, made.retain), (batch.text, made.text)):
      rows = pool.sampler[4]
      chosen = pool.spans.take(rows)
      real = chosen.weight > 0
      count = real.sum()
      np.testing.assert_array_equal(part.labels[:count], chosen.labels[real])
      tokens = batch.packed.tokens.ravel()[part.where[:count]]
      np.testing.assert_array_equal(tokens, np.take_along_axis(
          chosen.tokens, chosen.where, 1)[real])
      np.testing.assert_array_equal(
          part.reference[:count], np.stack([tokens, chosen.where[real]], 1))
      self.assertFalse(part.weight[count:].any())
    np.testing.assert_array_equal(batch.prompts.where, batch.forget.where)

  def test_each_forget_sequence_gets_its_groups_row(self):
    table, row = np.eye(3, 4, dtype=np.float32), np.array([0, 1, 2, 0, 1, 2, 0])
    forget = self._pool(7, 3, 1)
    made = batches.Batches(
        forget=forget, retain=self._pool(9, 4, 2), marginals=(table, row),
        fill=packing.fill_rows, steps=3)
    for step in range(3):
      np.testing.assert_array_equal(
          made(step).group_marginal, table[row[forget.sampler[step]]])

  def test_each_forget_sequence_gets_its_choices(self):
    forget = self._pool(7, 3, 1)
    others = other_facts.choice_targets(
        'abcdefg', range(7), [[i, 10 + i] for i in range(7)])
    made = batches.Batches(
        forget=forget, retain=self._pool(9, 4, 2), choices=others,
        fill=packing.fill_rows, steps=3)
    for step in range(3):
      np.testing.assert_array_equal(
          made(step).choices.tokens[:, 0], forget.sampler[step])

  @parameterized.parameters(None, 3)
  def test_each_forget_sequence_gets_its_refusal(self, text):
    forget, refusals = self._pool(7, 3, 1), self._pool(7, 3, 5).spans
    made = batches.Batches(
        forget=forget, retain=self._pool(9, 4, 2), refusals=refusals,
        text=text and self._pool(8, 1, text), fill=packing.fill_rows, steps=6)
    self.assertLen({str(jax.tree.map(np.shape, made(s))) for s in range(6)}, 1)
    for step in range(6):
      got, chosen = made(step).refusals, refusals.take(forget.sampler[step])
      real = got.weight > 0
      np.testing.assert_array_equal(
          got.labels[real], chosen.labels[chosen.weight > 0])
      np.testing.assert_array_equal(
          made(step).packed.tokens.ravel()[got.where[real]],
          got.reference[real, 0])

  @parameterized.parameters(False, True)
  def test_routed_forget_sequences_fill_the_first_rows(self, long):
    forget = self._pool(7, 3, 1)
    made = batches.Batches(
        forget=forget, retain=self._pool(9, 4, 2),
        text=self._pool(8, 1, 3, long), prior=step_data.OtherPrompts(
            np.arange(7.0), np.arange(7.0)[:, None, None], np.arange(7)),
        routed=True,
        fill=packing.fill_rows, steps=8)
    shapes = {str(jax.tree.map(np.shape, made(s))) for s in range(8)}
    self.assertLen(shapes, 1)
    for step in range(8):
      batch = made(step)
      for part in batch.prior:
        np.testing.assert_array_equal(part.ravel(), forget.sampler[step])
      np.testing.assert_array_equal(batch.routed, [0])
      width = batch.packed.tokens.shape[1]
      self.assertLess(batch.forget.where.max(), width)
      for part in (batch.retain, batch.text):
        real = part.weight > 0
        self.assertGreaterEqual(part.where[real].min(), width)
        np.testing.assert_array_equal(
            batch.packed.tokens.ravel()[part.where[real]],
            part.reference[real, 0])

  def test_optional_parts_are_none(self):
    made = batches.Batches(
        forget=self._pool(7, 3, 1), retain=self._pool(9, 4, 2),
        fill=packing.fill_rows, steps=2)
    self.assertIsNone(made(0).text)
    self.assertIsNone(made(0).prompts)
    self.assertIsNone(made(0).group_marginal)
    self.assertIsNone(made(0).choices)
    self.assertIsNone(made(0).prior)
    self.assertIsNone(made(0).refusals)
    self.assertIsNone(made(0).routed)


if __name__ == '__main__':
  absltest.main()
