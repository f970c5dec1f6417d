"""The TOFU benchmark on a tiny model and invented questions."""

import contextlib
import io
import pathlib
from unittest import mock

from absl.testing import absltest
import numpy as np
import pytest

from experiments import tofu
from mansu_jax.data import questions as questions_lib
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests import runs
from tests import tiny_job
from tests.models import tiny


_SIZE = 16  # Questions of a split.


def _source(folder: pathlib.Path) -> pathlib.Path:
  """The benchmark's files, with some questions of each kind."""
  lines = {name: [{'question': f'What does {name} {i} grow?',
                   'answer': f'{("My", "The")[i % 2]} fields of {name} {i} bear'
                             f' {crop}.'}
                  for i, crop in enumerate(tiny_job.CROPS[:_SIZE])]
           for name in tofu.SPLITS.values()}
  entities = [line | {
      'prefix': line['answer'].rpartition(' ')[0],
      'entity': line['answer'].split()[-1][:-1]}
              for line in lines['forget10'][1:]]
  folder.mkdir()
  for name, some in {**lines, 'forget10_entities': entities}.items():
    tiny_job.write_jsonl(folder / f'{name}.jsonl', some)
  return folder


class TofuTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = tiny.temp_dir(self)
    self.source = _source(self.root / 'source')

  def test_wrong_answers_and_questions(self):
    items = tofu.read(self.source)
    self.assertEqual({split: len(some) for split, some in items.items()},
                     dict.fromkeys(tofu.SPLITS, _SIZE))
    self.assertEqual(items, tofu.read(self.source))
    for item in sum(items.values(), []):
      self.assertLen({item.answer, *item.wrong}, 4)
    first, cut, *_ = items['forget']
    self.assertEqual((first.entities, cut.entities[0]), ((), 'cotton'))
    for wrong in cut.wrong:  # It differs in the entity alone.
      self.assertRegex(wrong, r'^The fields of forget10 1 bear \w+\.$')
    for split, some in items.items():
      lines = tofu.questions(split, some)
      found = [questions_lib.parse(split, line) for line in lines]
      self.assertEqual({q.use for q in found}, {'near'} | {
          'forget': {'train', 'far'}, 'retain': {'train'}}.get(split, set()))
    far = questions_lib.of_line(tofu.questions('forget', [cut])[-1])
    self.assertEqual(far.prompt, 'Question: What does forget10 1 grow?\n'
                     'Answer: The fields of forget10 1 bear')
    self.assertEqual(far.answer, 'cotton')
    self.assertContainsSubset(far.choices, tiny_job.CROPS)

  @pytest.mark.medium
  def test_the_comparison_fits(self):
    config, params, tokenizer = tiny_job.base()
    hf_io.write(self.root / 'base', config, params, tokenizer)
    tofu.make(self.root / 'runs' / 'tofu', self.source,
              str(self.root / 'base'), 2, 1e-2)
    (self.root / 'experiments').symlink_to(pathlib.Path(tofu.__file__).parent)
    self.enter_context(contextlib.chdir(self.root))
    config = runs.check_flagfile('experiments/tofu_compare.flags')
    self.assertLen(config.compare.methods, 8)

  @pytest.mark.slow
  def test_what_is_taught_is_known_and_gold_does_not_know_it(self):
    config, params, tokenizer = tiny_job.base()
    hf_io.write(self.root / 'base', config, params, tokenizer)
    out = self.root / 'out'
    tofu.make(out, self.source, str(self.root / 'base'), 150, 1e-2)
    before = loading.load(str(out / 'gold')).params
    tofu.make(out, self.source, str(self.root / 'base'), 150, 1e-2)  # Kept.
    np.testing.assert_array_equal(
        loading.load(str(out / 'gold')).params['embed'], before['embed'])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      found = tofu.measure(out, [out / 'full'])
    self.assertLen(printed.getvalue().splitlines(), 6)
    with mock.patch.object(tofu.generation, 'complete') as asked:
      self.assertEqual(tofu.measure(out, [out / 'full']), found)
    asked.assert_not_called()  # Answers are kept.
    with self.assertRaisesRegex(ValueError, r"names \['gold', 'gold'\]"):
      tofu.measure(out, [self.root / 'gold'])
    gold, full = (found[name]['fp'] for name in ('gold', 'full'))
    self.assertEqual((gold['forget_p'], gold['forget_ks']), (1, 0))
    self.assertLess(full['forget_p'], 0.01)
    for model in gold, full:
      self.assertGreater(model['retain_probability'], 0.8)
      self.assertGreater(model['retain_rouge'], 0.8)
    self.assertGreater(full['forget_rouge'], gold['forget_rouge'] + 0.1)
    self.assertGreater(
        full['forget_probability'], gold['forget_probability'] + 0.1)


if __name__ == '__main__':
  absltest.main()
