"""The fields of each family's `config.json`."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.models import families
from tests import families as test_data

_FULL, _WITHIN = 'full_attention', 'sliding_attention'


class FamiliesTest(parameterized.TestCase):

  def test_every_field_is_in_one_group(self):
    for family in families.FAMILIES.values():
      groups = family.groups()
      self.assertLen(frozenset().union(*groups), sum(map(len, groups)))

  @parameterized.parameters(
      ('mistral', {'sliding_window': 3}, (3, 3, 3)),
      ('mistral', {'sliding_window': None}, ()),
      ('mistral', {'sliding_window': 3, 'layer_types': [
          'full_attention', 'sliding_attention', 'full_attention']}, (0, 3, 0)),
      ('qwen2', {'use_sliding_window': True, 'sliding_window': 4,
                 'max_window_layers': 1}, (0, 4, 4)),
      ('qwen2', {'use_sliding_window': False, 'sliding_window': 4,
                 'max_window_layers': 1}, ()),
      ('qwen3', {'sliding_window': 4, 'max_window_layers': 0}, ()))
  def test_windows(self, kind, changes, want):
    fields = {'model_type': kind, 'vocab_size': 8, 'hidden_size': 8,
              'intermediate_size': 8, 'num_hidden_layers': 3,
              'num_attention_heads': 2, 'num_key_value_heads': 2}
    cfg = families.from_hf(fields | changes, 'x')
    self.assertEqual(cfg.windows, want)
    self.assertEqual((cfg.qkv_bias, cfg.qk_norm, cfg.d_head), {
        'mistral': (False, False, 4), 'qwen2': (True, False, 4),
        'qwen3': (False, True, 128)}[kind])
    self.assertEqual(families.from_hf(
        families.to_hf(cfg, 'float32'), 'x'), cfg)

  @parameterized.named_parameters(
      (kind, kind, extra) for kind, extra in test_data.PUBLISHED)
  def test_fields_of_published_files(self, kind, extra):
    fields = {'model_type': kind, 'vocab_size': 8, 'hidden_size': 16,
              'intermediate_size': 8, 'num_hidden_layers': 2,
              'num_attention_heads': 2}
    config = families.from_hf(fields | extra, 'x')
    if kind == 'gpt_neox':
      self.assertEqual(config.activation, 'gelu_tanh')
    for name, other in (('use_mrope', True), ('norm_type', 'rms_norm')):
      if name in extra:
        with self.assertRaisesRegex(ValueError, f'{name}: .?{other}'):
          families.from_hf(fields | extra | {name: other}, 'x')

  @parameterized.parameters(
      {'n_special': 0, 'predict_special_tokens': True},  # GPT-2 medium.
      {'output_past': True}, {'_num_labels': 1},  # XL, distilled.
      {'feed_forward_length': 32})  # Saved by transformers from a GGUF file.
  def test_fields_of_published_files_of_gpt2(self, **extra):
    fields = {'model_type': 'gpt2', 'vocab_size': 8, 'n_embd': 8, 'n_layer': 2,
              'n_head': 2}
    self.assertEqual(
        families.from_hf(fields | extra, 'x'), families.from_hf(fields, 'x'))

  @parameterized.parameters(
      {'rope_theta': 5e5}, {'rope_scaling': {'rope_type': 'linear'}},
      {'rope_parameters': {'foo': 1}}, {'head_dim': 4})
  def test_a_vouched_field_of_other_families_is_not_read(self, **extra):
    fields = test_data.FIELDS['gpt2'] | {'model_type': 'gpt2'}
    name, = extra
    with self.assertRaisesRegex(ValueError, f'ignore_fields={name}.$'):
      families.from_hf(fields | extra, 'x')
    self.assertEqual(families.from_hf(fields | extra, 'x', (name,)),
                     families.from_hf(fields, 'x'))

  def test_a_share_without_a_rotary_coordinate(self):
    fields = {'model_type': 'gpt_neox', 'vocab_size': 8, 'hidden_size': 16,
              'intermediate_size': 8, 'num_hidden_layers': 1,
              'num_attention_heads': 2, 'max_position_embeddings': 8}
    self.assertEqual(
        families.from_hf(fields | {'rotary_pct': 0.25}, 'x').d_rotary, 2)
    with self.assertRaisesRegex(
        ValueError, 'partial_rotary_factor = 0.01; wanted a share of at least'
        ' 1/8, and at most 1. Use'):
      families.from_hf(fields | {'rotary_pct': 0.01}, 'x')

  @parameterized.parameters(
      ({_FULL: [1]}, "has full_attention = .1.; wanted dict"),
      ({_WITHIN: 'abc'}, "has sliding_attention = 'abc'; wanted dict"),
      ({_WITHIN: {'rope_type': 'linear', 'factor': 2.0}},
       'scaling in layers with a window, .*; wanted rope_theta alone'),
      ({_FULL: {}, 'factor': 8.0}, "rope_parameters with .'factor'.; wanted"),
      ({_FULL: {}, 'other': {}}, "rope_parameters with .'other'.; wanted"),
      ({_WITHIN: {'foo': 1}}, 'give --model_ignore_fields=rope_parameters.foo'),
      ({_FULL: {'foo': 1}}, 'give --model_ignore_fields=rope_parameters.foo'),
      ({_FULL: {'rope_type': [1]}}, 'has rope_type = .1.; wanted str'))
  def test_rotary_parts_of_kinds_of_layers(self, parts, message):
    fields = test_data.FIELDS['gemma3_text'] | {
        'model_type': 'gemma3_text', 'rope_parameters': parts}
    for vouched in (
        (), (f'rope_parameters.{_FULL}', f'rope_parameters.{_WITHIN}')):
      with self.assertRaisesRegex(ValueError, message):
        families.from_hf(fields, 'x', vouched)

  def test_rotary_parts_without_unknown_fields(self):
    fields = test_data.FIELDS['gemma3_text'] | {'model_type': 'gemma3_text'}
    within = {'rope_theta': 7.0, 'factor': None, 'type': 'default'}
    read = lambda parts: families.from_hf(
        fields | {'rope_parameters': parts}, 'x', ('rope_parameters.foo',))
    got = read({_WITHIN: within | {'foo': 1}, _FULL: {'foo': [1]}})
    self.assertEqual(got, read({_WITHIN: {'rope_theta': 7.0}}))
    self.assertEqual(got.window_rope_theta, 7)

  @parameterized.parameters('type', 'rope_type')
  def test_a_scaling_of_another_type(self, name):
    for kind, fields in test_data.FIELDS.items():
      if kind == 'gpt2':  # Without rotary positions.
        continue
      with self.subTest(kind), self.assertRaisesRegex(
          ValueError, f'{name} = .1.; wanted str'):
        families.from_hf({
            **fields, 'model_type': kind, 'rope_parameters': {name: [1]}}, 'x')

  @parameterized.parameters(
      ('llama', {'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
                 'rope_parameters': {'rope_type': 'linear', 'factor': 2.0}},
       'factor as 8.0 in rope_scaling and 2.0 in rope_parameters'),
      ('phi3', {'original_max_position_embeddings': 40,
                'rope_parameters': test_data.FIELDS['phi3']['rope_parameters'] |
                {'original_max_position_embeddings': 48}},
       'original_max_position_embeddings as 40 and, in rope_parameters, 48'),
      ('phi3', {'layer_types': ['full_attention'] * 2}, 'fields .*layer_types'))
  def test_fields_that_contradict_each_other(self, kind, extra, message):
    with self.assertRaisesRegex(ValueError, message):
      families.from_hf(
          test_data.FIELDS[kind] | {'model_type': kind} | extra, 'x')

  def test_bad_layer_types(self):
    with self.assertRaisesRegex(ValueError, 'layer_types.*wanted 1 of'):
      families.from_hf({
          'model_type': 'mistral', 'vocab_size': 8, 'hidden_size': 8,
          'intermediate_size': 8, 'num_hidden_layers': 1,
          'num_attention_heads': 2, 'num_key_value_heads': 2,
          'layer_types': ['linear_attention']}, 'x')


if __name__ == '__main__':
  absltest.main()
