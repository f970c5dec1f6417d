"""The facts of the tiny job in its model's own words."""

import json

from absl.testing import absltest
import numpy as np
import pytest

from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import recall
from mansu_jax.stages.prepare import inputs as inputs_lib
from tests import tiny_job


def _inputs():
  asked = {role: [questions_lib.parse(f'{role}:{i}', line)
                  for i, line in enumerate(lines)]
           for role, lines in tiny_job.questions().items()}
  splits = splits_lib.build_splits(**asked, text=[])
  return inputs_lib.Inputs(
      splits=splits, evaluation=dict(splits.evaluation), heldout_text=[],
      calibration=[], hashes={})


def _recaller(*, train=False, chat=False, **options):
  config, params, tokenizer = tiny_job.base(train=train, chat=chat)
  model = loading.LoadedModel(
      config=config, params=params, tokenizer=tokenizer, source={})
  return recall.Recaller(
      run_config.EvalConfig(**options), run_config.DataConfig(chat=chat),
      _inputs(), model, seed=1), params


class RecallTest(absltest.TestCase):

  def test_the_base_recalls_what_it_knows(self):
    self._check_recalled()

  @pytest.mark.slow
  def test_the_base_recalls_what_it_knows_in_chat_form(self):
    self._check_recalled(chat=True)

  def _check_recalled(self, **form):
    recaller, params = _recaller(train=True, recall_questions=12, **form)
    texts = recaller(params)
    self.assertEqual(texts, json.loads(json.dumps(texts)))
    self.assertEqual({k: len(v) for k, v in texts.items()},
                     dict.fromkeys(recall.READINGS, 24))
    self.assertLessEqual(recaller.new_tokens, 16)
    right, ignorance = recaller.right(texts), recaller.ignorance(texts)
    self.assertGreater(right[recall.PLAIN].mean(), 0.9)
    for name in recall.READINGS:
      self.assertEqual(right[name].shape, (24,))
      self.assertLess(ignorance[name].mean(), 0.1)
    facts = [q.fact for q in recaller.questions[recall.PLAIN]]
    self.assertLen(set(facts), 12)  # Each fact twice.
    np.testing.assert_array_equal(np.unique(facts, return_counts=True)[1], 2)

  def test_only_what_the_base_says_is_asked(self):
    recaller, params = _recaller(recall_questions=8)
    asked = recaller.questions[recall.PLAIN]
    said = {name: [q.answer if q.fact.endswith(('a', 'n')) else 'No.'
                   for q in questions]
            for name, questions in recaller.questions.items()}
    rows = recaller.answered(said)
    self.assertLen(rows[recall.PLAIN], 8)
    for i in rows[recall.PLAIN]:
      self.assertEqual(said[recall.PLAIN][i], asked[i].answer)
    facts = [asked[i].fact for i in rows[recall.PLAIN]]
    self.assertGreater(len(set(facts)), 3)  # Evenly over facts.
    texts = recaller(params, rows)
    whole = recaller(params)
    for name, found in texts.items():
      self.assertEqual(found, [whole[name][i] for i in rows[name]])
    right = recaller.right(said, None)
    self.assertTrue(all(right[recall.PLAIN][rows[recall.PLAIN]]))

  def test_nothing_is_asked_if_the_base_says_nothing(self):
    recaller, params = _recaller(recall_questions=4)
    view = lambda params: params
    got = recall.measure(
        recaller, {'fp': view, 'nf4': view}, params, params, resamples=100,
        seed=0)  # The untrained base.
    self.assertEqual(got.readings, {})

  def test_small_batches_give_the_same_answers(self):
    recaller, params = _recaller(recall_questions=12)
    small, _ = _recaller(recall_questions=12, batch_tokens=8)
    self.assertGreater(
        len(small.batches()[recall.FEW_SHOT]),
        len(recaller.batches()[recall.FEW_SHOT]))
    self.assertEqual(small(params), recaller(params))

  def test_none_are_asked(self):
    recaller, params = _recaller(recall_questions=0)
    self.assertEqual(recaller(params), {})
    self.assertEqual(recaller.batches(), {})


if __name__ == '__main__':
  absltest.main()
