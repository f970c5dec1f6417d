"""What a config of a model refuses."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.models import config as config_lib
from mansu_jax.models import families
from mansu_jax.models import layers
from tests.models import tiny


class ConfigTest(parameterized.TestCase):

  def test_transformers_defaults(self):
    fields = {'model_type': 'llama', 'vocab_size': 8, 'hidden_size': 8,
              'intermediate_size': 8, 'num_hidden_layers': 1,
              'num_attention_heads': 2}
    cfg = families.from_hf(fields, 'x')
    self.assertEqual(
        (cfg.num_kv_heads, cfg.d_head, cfg.norm_eps, cfg.rope_theta,
         cfg.tie_embeddings, cfg.max_position, cfg.bos_token_id,
         cfg.eos_token_id), (2, 4, 1e-6, 1e4, False, 2048, 1, 2))

  @parameterized.parameters(
      ({'d_head': 5}, 'd_head = 5; wanted an even width'),
      ({'windows': (4,)}, 'windows = .4,.; wanted none, or 3 integers'),
      ({'num_layers': 0}, 'num_layers = 0; wanted a positive'),
      ({'num_heads': True}, 'num_heads = True'),
      ({'norm_eps': 0.0}, 'norm_eps = 0.0'),
      ({'query_scale': -1.0}, 'query_scale = -1.0'),
      ({'norm': 'batch'}, "norm = 'batch'; wanted one of .'rms', 'layer'"),
      ({'d_rotary': 3}, 'd_rotary = 3; wanted an even number up to d_head'))
  def test_bad_values(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      tiny.config(**changes)

  def test_every_activation_is_implemented(self):
    self.assertCountEqual(layers.ACTIVATIONS, config_lib.CHOICES['activation'])

  @parameterized.parameters(
      ({'kind': 'ntk', 'factor': 2.0}, "scaling 'ntk' is not implemented"),
      ({'kind': 'linear', 'factor': 0.5}, 'factor = 0.5; wanted a finite'),
      ({'kind': 'llama3', 'factor': 2.0},
       r"fields \['factor'\]; wanted .*'high_freq_factor'"),
      ({'kind': 'linear', 'factor': 2.0, 'low_freq_factor': 1.0},
       r"wanted \['factor'\]"),
      ({'kind': 'llama3', 'factor': 2.0, 'low_freq_factor': 4.0,
        'high_freq_factor': 4.0, 'original_max_position': 64},
       'low_freq_factor = 4.0 and high_freq_factor = 4.0; wanted .* less'))
  def test_bad_scaling(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.RopeScaling(**fields)


if __name__ == '__main__':
  absltest.main()
