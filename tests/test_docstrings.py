"""Examples in docstrings run, and the public API has some."""

import doctest
import importlib
import inspect
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

import mansu_jax
from mansu_jax import quant
from mansu_jax import transforms

_ROOT = pathlib.Path(mansu_jax.__file__).parent
_WITH_EXAMPLES = sorted(
    path for path in _ROOT.rglob('*.py')
    if '>>> ' in path.read_text(encoding='utf-8'))
_MUST_HAVE = {  # Room -> modules whose docstrings show an example.
    'circuits': ('eap_ig', 'param_mask', 'select'),
    'data': ('batching', 'packing', 'pairs', 'questions', 'splits', 'subjects',
             'tokenization', 'readers.jsonl', 'readers.pair_files',
             'readers.text'),
    'erasure': ('copy_back', 'divergence'),
    'eval': ('accuracy', 'perplexity', 'weight_change'),
    'models': ('config', 'decoder', 'sites', 'families', 'io.hf_io',
               'io.loading'),
    'statistics': ('accuracy', 'intervals', 'power', 'verdict')}
_OPTIONS = doctest.ELLIPSIS


def _module_name(path):
  parts = path.relative_to(_ROOT.parent).with_suffix('').parts
  return '.'.join(parts).removesuffix('.__init__')


def _public_functions():
  """Public functions of both rooms and of the modules that quant exports."""
  for room in (quant, transforms):
    for name in dir(room):
      value = getattr(room, name)
      if inspect.isfunction(value) and not name.startswith('_'):
        yield f'{room.__name__}.{name}', value
  for module, name in ((quant.survival, 'survival'), (quant.packing, 'pack'),
                       (quant.gguf_bytes, 'to_bytes')):
    yield f'{module.__name__}.{name}', getattr(module, name)


class DocstringsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (_module_name(path).replace('.', '_'), _module_name(path))
      for path in _WITH_EXAMPLES)
  def test_examples(self, name):
    module = importlib.import_module(name)
    failed, attempted = doctest.testmod(module, optionflags=_OPTIONS)
    self.assertEqual(failed, 0, 'see the output above')
    self.assertGreater(attempted, 0)

  def test_rooms_show_examples(self):
    wanted = {f'mansu_jax.{room}.{module}' for room, modules
              in _MUST_HAVE.items() for module in modules}
    self.assertContainsSubset(wanted, set(map(_module_name, _WITH_EXAMPLES)))

  def test_public_functions_have_an_example(self):
    without = [name for name, fn in _public_functions()
               if '>>> ' not in (fn.__doc__ or '')]
    self.assertEmpty(without)


if __name__ == '__main__':
  absltest.main()
