"""Replay in a run: what is written, cut, kept and refused."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax import checkpoints
from mansu_jax.models import loading
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.stages import replay
from tests import runs
from tests import tiny_job


class _Saved:
  """Stages that find what they are given."""

  def __init__(self, **found):
    self._found = found

  def get(self, name, make):
    del make
    return self._found[name]


class ReplayTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    made = tempfile.TemporaryDirectory()
    cls.addClassCleanup(made.cleanup)
    cls.folder = pathlib.Path(made.name)
    cls.flags = tiny_job.make(cls.folder / 'job', train=False)
    cls.model = loading.load(cls.folder / 'job' / 'model')

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def _write(self, *flags, saved=None):
    config = runs.parse(*self.flags, *flags, f'--workdir={self.root}')
    saved = saved or checkpoints.Stages(
        self.root / 'checkpoints', resume=True)
    return replay.write(
        config, inputs_lib.read(config), self.model, saved, self.root)

  def _tokens(self, texts, opening_tokens):
    """What sampling would return, padded with the end token."""
    rows = [self.model.tokenizer(t)['input_ids'] for t in texts]
    width = opening_tokens + max(map(len, rows))
    return np.array([row + [0] * (width - len(row)) for row in rows])

  def test_off_by_default(self):
    self.assertEqual(self._write(), [])
    self.assertFalse((self.root / 'replay.jsonl').exists())

  def test_the_base_writes_about_each_subject(self):
    flags = ('--replay_sequences=2', '--replay_tokens=24',
             '--replay_openings={},The king of {}')
    documents = self._write(*flags)
    lines = [json.loads(line) for line in
             (self.root / 'replay.jsonl').read_text().splitlines()]
    self.assertEqual([d.text for d in documents], [x['text'] for x in lines])
    self.assertEqual({d.kind for d in documents}, {'replay'})
    self.assertBetween(len(lines), 12, 24)  # Of an untrained model.
    subjects = tiny_job.COUNTRIES[:12]
    self.assertContainsSubset({x['subject'] for x in lines}, subjects)
    for line in lines:
      self.assertStartsWith(
          line['text'].removeprefix('The king of '), line['subject'])
    self.assertEqual(self._write(*flags), documents)  # From the checkpoint.
    (self.root / 'checkpoints' / 'replay').rename(self.root / 'away')
    self.assertEqual(self._write(*flags), documents)  # By the seed.
    (self.root / 'checkpoints' / 'replay').rename(self.root / 'away_too')
    self.assertNotEqual(self._write(*flags, '--seed=1'), documents)

  def test_texts_end_where_a_forgotten_answer_stands(self):
    texts = [f'{name} has six fine things to see and more'
             for name in tiny_job.COUNTRIES[:12]]
    texts[0] += f' in {tiny_job.CAPITALS[0]} and'
    texts[1] = f'{tiny_job.COUNTRIES[1]} has {tiny_job.CAPITALS[1]} and much'
    texts[2] += f' in {tiny_job.CAPITALS[3]} and'  # Of another subject.
    tokens = self._tokens(texts, 4)
    documents = self._write(
        '--replay_sequences=1', f'--replay_tokens={tokens.shape[1]}',
        '--replay_openings={}', saved=_Saved(replay={'tokens': tokens}))
    want = [f'{tiny_job.COUNTRIES[0]} has six fine things to see and more in',
            *texts[2:]]
    self.assertEqual([d.text for d in documents], want)

  def test_refuses_when_nothing_is_left(self):
    texts = [f'{name} has {capital}' for name, capital in zip(
        tiny_job.COUNTRIES[:12], tiny_job.CAPITALS)]
    with self.assertRaisesRegex(ValueError, 'none was left'):
      self._write('--replay_sequences=1', '--replay_openings={}', saved=_Saved(
          replay={'tokens': self._tokens(texts, 4)}))

  def test_refuses_facts_without_a_subject(self):
    questions = [
        dict(q, fact='capital/x', prompt=f'{i}') for i, q in enumerate(
            tiny_job.questions()['forget'])]
    tiny_job.write_jsonl(self.root / 'forget.jsonl', questions)
    flags = [f for f in self.flags if not f.startswith('--data_forget')]
    config = runs.parse(
        *flags, f'--data_forget={self.root}/forget.jsonl',
        '--replay_sequences=1')
    with self.assertRaisesRegex(ValueError, 'share a word'):
      replay.plan(config, inputs_lib.read(config).splits.forget_train)

  @parameterized.parameters(
      ('--replay_openings=no slot', 'no slot.*wanted texts with one {}'),
      ('--replay_openings={} {}', 'one {} for the subject'),
      ('--replay_openings={name}', 'no other brace'),
      ('--replay_openings=', 'is empty'),
      ('--replay_temperature=0', 'temperature=0.0 must be positive'),
      ('--replay_tokens=0', '--replay_tokens=0 must be at least 1'),
      ('--replay_sequences=-1', 'must be at least 0'))
  def test_refuses_options(self, flag, message):
    with self.assertRaisesRegex(ValueError, message):
      runs.parse(*self.flags, flag)


if __name__ == '__main__':
  absltest.main()
