"""Questions that the model cannot read are refused before any long work."""

import types

from absl.testing import absltest

from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import token_checks


def _tokenizer(texts, add_special_tokens=False):
  """A token for each character."""
  del add_special_tokens
  return {'input_ids': [[ord(c) for c in text] for text in texts]}


def _question(role, use, prompt):
  return questions_lib.Question(
      id=f'{role}/{prompt}', fact=role, relation=role, prompt=prompt,
      answer='a', choices=('a', 'b'), use=use)


class CheckDataTest(absltest.TestCase):

  def test_questions_that_are_not_scored_are_checked_too(self):
    """Other measures draw from them at the end of a run."""
    long = _question('forget', 'far', 'long' * 20)
    splits = splits_lib.build_splits(
        forget=[_question('forget', 'train', 'x'),
                _question('forget', 'far', 'y'), long],
        retain=[_question('retain', 'train', 'z')], heldout=[], text=[])
    scored = {name: [q for q in questions if q is not long]
              for name, questions in splits.evaluation.items()}
    inputs = inputs_lib.Inputs(
        splits=splits, evaluation=scored, heldout_text=[], calibration=[],
        hashes={})
    check = lambda most: token_checks.check_data(
        run_config.DataConfig(), inputs, types.SimpleNamespace(
            vocab_size=128, max_position=most), _tokenizer)
    check(90)
    with self.assertRaisesRegex(
        ValueError, 'longlong.*has 82 tokens; wanted at most 40'):
      check(40)


if __name__ == '__main__':
  absltest.main()
