"""Audits of models that torch transformers saved."""

import json

from absl.testing import absltest
from safetensors import numpy as safetensors_numpy

from tests import runs
from tests.models import tiny

try:
  import torch
  import transformers
except ImportError:
  torch = None

_EMBED = 'model.embed_tokens.weight'


@absltest.skipIf(torch is None, 'torch is not installed')
class TransformersTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.temp_dir(self)
    config = tiny.config(bos_token_id=1, eos_token_id=2)
    self.gguf = self.folder / 'base.gguf'
    tiny.write_gguf(self.gguf, config, tiny.params(config))
    self.torch_model = transformers.AutoModelForCausalLM.from_pretrained(
        self.folder, gguf_file=self.gguf.name)
    if getattr(self.torch_model, 'hf_quantizer', None) is not None:
      # Version 5 does not save what it loaded from a GGUF file otherwise.
      self.torch_model.hf_quantizer.remove_quantization_config(
          self.torch_model)
    self.base = self._save('base')
    with torch.no_grad():
      self.torch_model.model.layers[1].mlp.up_proj.weight[3] *= 2

  def _save(self, name, model=None, **options):
    path = self.folder / name
    (model or self.torch_model).save_pretrained(path, **options)
    return path

  def _moved(self, base, model):
    """Weights that moved, by leaf."""
    record = runs.audit(self.folder / f'audit_{model.name}_{base.name}',
                        f'--base={base}', f'--model={model}')
    return {name: round(leaf['moved'] * leaf['size'])
            for name, leaf in record['movement']['leaves'].items()
            if leaf['moved']}

  def test_a_directory_saved_from_a_gguf_file(self):
    fields = json.loads((self.base / 'config.json').read_text())
    self.assertNotEqual(fields['rms_norm_eps'], 1e-5)
    model = self._save('model')
    for base in (self.base, self.gguf):
      self.assertEqual(self._moved(base, model), {'layers/mlp/up': 24})
    with self.assertRaisesRegex(ValueError, 'equal those of .*as float32'):
      self._moved(self.gguf, self.base)

  def test_bfloat16(self):
    model = self._save('model', self.torch_model.to(torch.bfloat16))
    for base in (self.base, self.gguf):
      self.assertEqual(self._moved(base, model), {'layers/mlp/up': 24})

  def test_shards_and_tied_weights_twice(self):
    model = self._save('model', max_shard_size='10KB')
    self.assertGreater(len(list(model.glob('*.safetensors'))), 2)
    self.assertEqual(self._moved(self.base, model), {'layers/mlp/up': 24})
    twice = self._save('twice')
    found = runs.tensors(twice)
    safetensors_numpy.save_file(
        found | {'lm_head.weight': found[_EMBED]}, twice / 'model.safetensors')
    self.assertEqual(self._moved(self.gguf, twice), {'layers/mlp/up': 24})


if __name__ == '__main__':
  absltest.main()
