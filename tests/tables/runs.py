"""Stored runs by hand."""

import copy
import gzip
import json
import pathlib

from absl.testing import parameterized
import numpy as np

from experiments.tables import stored
from tests.report import records

PRECISIONS = ('fp', 'nf4')
# Split, reading and phrasings of the questions of a stored run by hand.
_ASKED = (
    ('forget', 'choice', ('train_0',)),
    ('forget_paraphrase', 'choice', ('near_0',)),
    ('forget_far', 'choice', ('far_quiz',)),
    ('forget_unseen', 'choice_unseen', (
        'far_quiz_unseen_0', 'far_quiz_unseen_1')),
    ('forget_reverse', 'reverse', ('reverse_set_0',)),
    ('retain', 'choice', ('near_0',)),
    ('retain_heldout', 'choice', ('near_0',)))


def _line(split, reading, fact, form, rng):
  """A question and its answers, right with probabilities by model."""
  answer = lambda share: {
      'correct': bool(rng.random() < share),
      'ignorance': float(share < 0.9) / 4}
  kept = split.startswith('retain')
  return {
      'split': split, 'id': f'{fact}/{form}', 'fact': fact,
      'relation': fact.split('/')[0], 'reading': reading, 'prompt': 'What?',
      'answer': 'a', 'choices': ['a', 'b', 'c', 'd'], 'models': {
          'base': {p: answer(0.95) for p in PRECISIONS},
          'unlearned': {p: answer(0.9 if kept else 0.5) for p in PRECISIONS}}}


def answers(relation, seed, facts=30):
  """Lines of answers.jsonl.

  Args:
    relation: of the forget facts.
    seed: of the answers.
    facts: number of facts of each split.
  """
  rng = np.random.default_rng(seed)
  name = lambda split, i: f'{relation if "forget" in split else split}/{i}'
  return [_line(split, reading, name(split, i), form, rng)
          for split, reading, forms in _ASKED
          for i in range(facts) for form in forms]


class TestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.results = pathlib.Path(self.create_tempdir().full_path)

  def save(self, name, seed=0, relation='capital', change=None):
    """Stores a run by hand.

    Args:
      name: folder of the setting.
      seed: of the run.
      relation: of the forget facts.
      change: function that changes the record.
    """
    record = copy.deepcopy(records.make())
    record['config']['seed'] = seed
    record['environment']['commit'] = '0123456789abcdef'
    if change:
      change(record)
    folder = self.results / name / f's{seed}'
    folder.mkdir(parents=True)
    (folder / 'record.json').write_text(json.dumps(record))
    found = answers(relation, seed)
    for file, lines in (('answers', found), ('generations', [
        {**line, 'reading': way} for line in found[:60]
        for way in ('generation', 'generation_few_shot')])):
      with gzip.open(folder / f'{file}.jsonl.gz', 'wt') as out:
        out.write('\n'.join(map(json.dumps, lines)))
    return stored.Run(folder)
