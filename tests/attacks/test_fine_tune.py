"""Fine-tuning lowers the loss, keeps its input, and compiles once."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.attacks import fine_tune
from mansu_jax.data import questions as questions_lib
from mansu_jax.data.readers import text as text_lib
from mansu_jax.models import layout
from mansu_jax.unlearn import losses
from tests.eval import toy_model
from tests.models import tiny

_CONFIG = tiny.config(num_layers=2)
_STEPS = (0, 2, 12)


def _lesson(by_token=False):
  """20 sequences of 4 to 8 tokens, of which the last two are taught."""
  tokens = tiny.tokens(_CONFIG, 20, 8)
  length = np.arange(20) % 5 + 4
  position = np.arange(8)[None]
  scored = (position >= length[:, None] - 3) & (
      position < length[:, None] - 1)
  return fine_tune.Lesson(tokens, length.astype(np.int32), scored, by_token)


def _nll(params, lesson):
  """Mean over sequences of the NLL, each sequence in a row of its own."""
  logits = tiny.logits(_CONFIG, params, lesson.tokens[:, :-1])
  nll = losses.token_nll(logits, lesson.tokens[:, 1:])
  return float(jnp.sum(nll * lesson.scored[:, :-1])) / len(lesson.tokens)


class BatchesTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_the_loss_of_a_batch_is_that_of_its_sequences(self, by_token):
    lesson = _lesson(by_token)
    params = jax.tree.map(jnp.asarray, tiny.params(_CONFIG))
    (batches,) = fine_tune.batches([lesson], 3, 0)
    sampler = fine_tune.batching.BatchSampler(20, fine_tune.BATCH, 0)
    for step, batch in enumerate(batches):
      logits = tiny.logits(
          _CONFIG, params, batch.tokens, positions=batch.positions,
          segments=batch.segments)
      nll = losses.token_nll(
          logits.reshape(-1, _CONFIG.vocab_size)[batch.at], batch.targets)
      rows = sampler[step]
      chosen = fine_tune.Lesson(*(x[rows] for x in lesson[:3]), by_token)
      # Two taught tokens a sequence.
      want = _nll(params, chosen) / (2 if by_token else 1)
      self.assertAlmostEqual(float(jnp.sum(nll * batch.weights)), want, 4)

  def test_lessons_share_one_shape(self):
    short = _lesson()
    long = fine_tune.Lesson(
        np.ones((3, 70), np.int32), np.full(3, 70, np.int32),
        np.arange(70)[None] == np.full((3, 1), 60), False)
    found = fine_tune.batches([short, long], 2, 0)
    shapes = {tuple(x.shape for x in batch) for many in found for batch in many}
    self.assertLen(shapes, 1)

  def test_answers_and_text_are_taught(self):
    tokenizer = toy_model.ToyTokenizer()
    ask = lambda prompt: questions_lib.Question(
        id=prompt, fact='f', relation='r', prompt=prompt, answer='dd ee',
        choices=('cc', 'dd ee'), use='train')
    lesson = fine_tune.lesson_of_questions(
        [ask('aa bb'), ask('aa')], tokenizer)
    self.assertEqual(lesson.scored.sum(1).tolist(), [2, 2])
    taught = [tokens[1:][scored[:-1]].tolist() for tokens, scored in zip(
        lesson.tokens, lesson.scored)]
    self.assertEqual(taught[0], taught[1])
    text = fine_tune.lesson_of_text(
        [text_lib.TextDocument(text='aa bb cc dd', kind='k')], tokenizer,
        window=3)
    self.assertTrue(text.by_token)
    self.assertEqual(text.scored.sum(1).tolist(), (text.length - 1).tolist())


class RunTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_training_lowers_the_loss_and_keeps_the_input(self, adapters):
    params = jax.tree.map(jnp.asarray, tiny.params(_CONFIG))
    before = jax.tree.map(np.array, params)
    lesson, last = _lesson(), []

    def measure(params):
      last[:] = [jax.tree.map(np.array, params)]
      return {'nll': _nll(params, lesson)}

    (batches,) = fine_tune.batches([lesson], _STEPS[-1], 0)
    run = lambda rate=1e-2: fine_tune.run(
        _CONFIG, params, batches, measure, steps=_STEPS, learning_rate=rate,
        adapters=adapters)
    found = run()
    self.assertEqual([x['step'] for x in found], list(_STEPS))
    self.assertAlmostEqual(found[0]['nll'], _nll(before, lesson), 4)
    self.assertLess(found[-1]['nll'], 0.7 * found[0]['nll'])
    self.assertIsNone(found[0]['loss'])
    self.assertLess(found[-1]['loss'], found[1]['loss'])
    self.assertLessEqual(found[-1]['nll'], found[-1]['loss'])
    jax.tree.map(np.testing.assert_array_equal, params, before)
    moved = {name for name, x in tree_paths.flatten(last[0]).items()
             if np.any(x != tree_paths.flatten(before)[name])}
    if adapters:
      self.assertEqual(moved, set(layout.MATRICES))
    else:
      self.assertEqual(moved, set(tree_paths.flatten(before)))
    compiled = fine_tune.train_step._cache_size()
    self.assertEqual(found, run())
    self.assertNotEqual(found, run(5e-3))
    self.assertEqual(fine_tune.train_step._cache_size(), compiled)

  def test_small_steps_of_bfloat16_weights_are_kept(self):
    params = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.bfloat16), tiny.params(_CONFIG))
    lesson, seen = _lesson(), []
    (batches,) = fine_tune.batches([lesson], 40, 0)
    def measure(params):
      seen.append(params['layers']['mlp']['down'].copy())
      return {}
    fine_tune.run(_CONFIG, params, batches, measure, steps=(0, 40),
                  learning_rate=2e-4)
    self.assertEqual(seen[0].dtype, jnp.bfloat16)
    # Steps of 2e-4 alone are less than half a unit of most weights.
    self.assertGreater(np.mean(seen[0] != seen[1]), 0.5)

  def test_a_diverged_run_ends(self):
    params = jax.tree.map(jnp.asarray, tiny.params(_CONFIG))
    (batches,) = fine_tune.batches([_lesson()], 4, 0)
    found = fine_tune.run(
        _CONFIG, params, batches, lambda params: {}, steps=(0, 1, 4),
        learning_rate=np.inf)
    self.assertEqual(found, [{'step': 0, 'loss': None}])


if __name__ == '__main__':
  absltest.main()
