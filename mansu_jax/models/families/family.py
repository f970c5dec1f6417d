"""A family of decoders in Hugging Face files: tensor names, and the config.

Each field of a `config.json` is handled, explicitly ignored, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import dataclasses
import sys
from typing import Any

from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models.families import gguf_form
from mansu_jax.models.families import rope
from mansu_jax.runtime import messages

Fields = Mapping[str, Any]

# Leaf -> tensor name, with `{}` for the layer; also of leaves that some lack.
# Of most families.
NAMES = {
    'embed': 'model.embed_tokens.weight',
    'final_norm': 'model.norm.weight',
    'lm_head': 'lm_head.weight',
    'layers/attn_norm': 'model.layers.{}.input_layernorm.weight',
    'layers/mlp_norm': 'model.layers.{}.post_attention_layernorm.weight',
    'layers/attn/q': 'model.layers.{}.self_attn.q_proj.weight',
    'layers/attn/k': 'model.layers.{}.self_attn.k_proj.weight',
    'layers/attn/v': 'model.layers.{}.self_attn.v_proj.weight',
    'layers/attn/o': 'model.layers.{}.self_attn.o_proj.weight',
    **{f'layers/attn/{name}_bias':
       f'model.layers.{{}}.self_attn.{name}_proj.bias' for name in 'qkv'},
    **{f'layers/attn/{name}_norm':
       f'model.layers.{{}}.self_attn.{name}_norm.weight' for name in 'qk'},
    'layers/mlp/gate': 'model.layers.{}.mlp.gate_proj.weight',
    'layers/mlp/up': 'model.layers.{}.mlp.up_proj.weight',
    'layers/mlp/down': 'model.layers.{}.mlp.down_proj.weight',
}

_REQUIRED = frozenset({
    'model_type', 'vocab_size', 'hidden_size', 'intermediate_size',
    'num_hidden_layers', 'num_attention_heads'})
_NEVER_NULL = ('rms_norm_eps', 'max_position_embeddings',
               'tie_word_embeddings')
_ROPE = ('rope_theta', 'rope_scaling', 'rope_parameters',
         'partial_rotary_factor')
# Optional fields with the defaults of transformers.
_OPTIONAL = {
    'num_key_value_heads': None, 'head_dim': None, 'rms_norm_eps': 1e-6,
    'max_position_embeddings': 2048, 'tie_word_embeddings': False,
    'bos_token_id': None, 'eos_token_id': None, 'pad_token_id': None,
    'rope_theta': None, 'rope_scaling': None, 'rope_parameters': None,
    'partial_rotary_factor': None}
# Fields of which this decoder implements one value.
_FIXED = {'is_encoder_decoder': False, 'add_cross_attention': False,
          'pruned_heads': {}}
_KINDS = dict.fromkeys(
    ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers',
     'num_attention_heads', 'num_key_value_heads', 'head_dim',
     'max_position_embeddings', 'bos_token_id', 'pad_token_id'), (int,))
_KINDS |= dict.fromkeys(
    ('rms_norm_eps', 'rope_theta', 'partial_rotary_factor'), (int, float))
_KINDS |= dict.fromkeys(('rope_scaling', 'rope_parameters'), (dict,))
_KINDS |= {'tie_word_embeddings': (bool,), 'eos_token_id': (int, list)}
# Fields that do not change what the model computes.
_IGNORED = frozenset({
    # Fields of most families.
    'attention_dropout', 'gradient_checkpointing', 'initializer_range',
    'use_cache',
    # Origin and storage of the file, and the tool that wrote it.
    '_attn_implementation_autoset', '_commit_hash', '_model_name_or_path',
    '_name_or_path', 'dtype', 'torch_dtype', 'transformers.js_config',
    'transformers_version', 'unsloth_fixed', 'unsloth_version',
    # Fields of the base config of transformers: tokens,
    'decoder_start_token_id', 'prefix', 'sep_token_id', 'tokenizer_class',
    'unk_token_id',
    # tasks,
    '_num_labels', 'finetuning_task', 'id2label', 'label2id', 'num_labels',
    'problem_type', 'task_specific_params',
    # outputs and execution,
    'chunk_size_feed_forward', 'cross_attention_hidden_size', 'is_decoder',
    'output_attentions', 'output_hidden_states', 'return_dict',
    'tf_legacy_loss', 'tie_encoder_decoder', 'torchscript', 'use_bfloat16',
    # and text generation.
    'bad_words_ids', 'begin_suppress_tokens', 'diversity_penalty', 'do_sample',
    'early_stopping', 'encoder_no_repeat_ngram_size',
    'exponential_decay_length_penalty', 'forced_bos_token_id',
    'forced_eos_token_id', 'length_penalty', 'max_length', 'min_length',
    'no_repeat_ngram_size', 'num_beam_groups', 'num_beams',
    'num_return_sequences', 'output_scores', 'remove_invalid_values',
    'repetition_penalty', 'return_dict_in_generate', 'suppress_tokens',
    'temperature', 'top_k', 'top_p', 'typical_p'})
# Fields that a config is computed from -> largest value. Some families list
# their layers.
_POSITIVE = {'num_hidden_layers': 2**16, 'hidden_size': 2**31,
             'num_attention_heads': 2**31}
QKV = 'layers/attn/q', 'layers/attn/k', 'layers/attn/v'  # Often one tensor.
_ROPE_THETA = 10_000.0  # Of families without their own default.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """How one family of models writes its files.

  Attributes:
    model_type: Value of this field in `config.json`.
    architecture: Class of transformers.
    members: Which models belong to it, for messages.
    activations: Names of the activations that it may have in `config.json`, and
      in a `ModelConfig`.
    names: Leaf -> tensor name, with `{}` for the layer; also of leaves that
      some of its models lack.
    by_head: Whether a tensor of several leaves holds them head by head.
    transposed: Whether its matrices are stored as [in, out].
    prefix: Of all tensor names but the head's. Files of the model without its
      head may lack it.
    ignored_tensors: Endings of the names of tensors that follow from the
      config, and that old files store.
    fields: Its own names of fields that other families name otherwise.
    without: Fields of other families that it lacks.
    required: Fields that a config must have besides those of every family.
    optional: Its own defaults of optional fields, and its own fields.
    fixed: Its own fields of which the decoder implements one value.
    kinds: Types of its own fields.
    positive: Its own fields that must be positive.
    ignored: Its own fields that do not change what the model computes.
    read: `(value of a field by its name, path for messages)` -> fields of the
      `ModelConfig` that only this family has.
    write: The inverse: config -> its own fields in `config.json`.
    partly_rotary: Whether rotary positions may turn a part of a head only.
    normalize: `(fields, path for messages)` -> the fields in their ordinary
      form, before they are checked.
    gguf: How `.gguf` files hold it; None: they are not read.
  """

  model_type: str
  architecture: str
  members: str
  activations: Mapping[str, str] = dataclasses.field(
      default_factory=lambda: {'silu': 'silu'})
  names: Mapping[str, str] = dataclasses.field(
      default_factory=lambda: NAMES)
  by_head: bool = False
  transposed: bool = False
  prefix: str = 'model.'
  ignored_tensors: tuple[str, ...] = ('.self_attn.rotary_emb.inv_freq',)
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  without: frozenset[str] = frozenset()
  required: frozenset[str] = frozenset()
  optional: Fields = dataclasses.field(default_factory=dict)
  fixed: Fields = dataclasses.field(default_factory=dict)
  kinds: Mapping[str, tuple[type, ...]] = dataclasses.field(
      default_factory=dict)
  positive: frozenset[str] = frozenset()
  ignored: frozenset[str] = frozenset()
  read: Callable[[Callable[[str], Any], str], dict[str, Any]] = (
      lambda get, where: {})
  write: Callable[[config_lib.ModelConfig], dict[str, Any]] = (
      lambda config: {})
  partly_rotary: bool = False
  normalize: Callable[[Fields, str], Fields] = lambda fields, where: fields
  gguf: gguf_form.GgufForm | None = None

  @property
  def naming(self) -> assemble.Naming:
    """How its files hold the leaves."""
    return assemble.Naming(
        self.names, by_head=self.by_head, transposed=self.transposed)

  def _own(self, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields by this family's names, without those that it lacks."""
    return {self.fields.get(name, name): value
            for name, value in fields.items() if name not in self.without}

  def groups(self) -> tuple[frozenset[str], ...]:
    """The fields that are required, optional, of one value, and ignored."""
    own = lambda names: frozenset(self._own(dict.fromkeys(names)))
    required = own(_REQUIRED) - self.optional.keys() | self.required
    optional = own(_OPTIONAL) | self.optional.keys() | own(['hidden_act'])
    return required, optional - required, frozenset(self._fixed()), (
        _IGNORED | self.ignored)

  def from_hf(
      self, fields: Fields, where: str, ignore: Collection[str] = ()
  ) -> config_lib.ModelConfig:
    """Builds a config from the fields of a Hugging Face `config.json`.

    Args:
      fields: Parsed file.
      where: Path of the file, for messages.
      ignore: Unknown fields to ignore; `rope_scaling.NAME` for one in there.

    Raises:
      ValueError: the architecture is another, a field is unknown or missing, or
        the decoder does not implement a value.
    """
    known = frozenset().union(*self.groups())
    fields = {name: value for name, value in fields.items()
              if name in known or name not in ignore}
    fields = self.normalize(rope.without(fields, ignore), where)
    self._check(fields, where)
    defaults = {**self._own(_OPTIONAL), **self.optional}

    def get(name):
      own = self.fields.get(name, name)
      return fields.get(own, defaults.get(own))

    heads, eos = get('num_attention_heads'), get('eos_token_id')
    longest, width = get('max_position_embeddings'), get('hidden_size')
    theta, scaling, share = rope.read(
        {name: fields.get(self.fields.get(name, name)) for name in _ROPE},
        get('rope_theta') or _ROPE_THETA,
        get('partial_rotary_factor') or 1.0, longest, where)
    if scaling is not None and scaling.kind == 'longrope':
      longest = scaling.original_max_position
    d_head = _or(get('head_dim'), width // heads)
    if not (share == 1 or (
        self.partly_rotary and 1 / d_head <= share < 1)):  # 0: all of them.
      wanted = (f'a share of at least 1/{d_head}, and at most 1'
                if self.partly_rotary else
                f'1, the only one in a {self.model_type} model')
      raise ValueError(f'{where} has partial_rotary_factor = {share}; wanted'
                       f' {wanted}. Use another model.')
    activation = _or(get('hidden_act'), next(iter(self.activations)))
    return config_lib.ModelConfig(
        family=self.model_type,
        vocab_size=get('vocab_size'),
        d_model=width,
        num_layers=get('num_hidden_layers'),
        num_heads=heads,
        num_kv_heads=_or(get('num_key_value_heads'), heads),
        d_head=d_head,
        d_rotary=0 if share == 1 else int(d_head * share),
        d_ff=_or(get('intermediate_size'), 4 * width),
        rope_theta=theta,
        rope_scaling=scaling,
        activation=self.activations[activation],
        norm_eps=get('rms_norm_eps'),
        tie_embeddings=get('tie_word_embeddings'),
        max_position=longest,
        bos_token_id=get('bos_token_id'),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        pad_token_id=get('pad_token_id'), **self.read(get, where))

  def from_common(self, fields: Fields, where: str) -> config_lib.ModelConfig:
    """As `from_hf`, from fields by the names that most families have."""
    return self.from_hf(self._own(fields), where)

  def _fixed(self) -> dict[str, Any]:
    return {'architectures': [self.architecture], **_FIXED, **self.fixed}

  def _check(self, fields: Fields, where: str) -> None:
    known = {name: [value] for name, value in self._fixed().items()}
    known[self.fields.get('hidden_act', 'hidden_act')] = list(self.activations)
    for name, values in known.items():
      got = fields.get(name, values[0])
      if got not in values and not (got is None and values[0] is False):
        wanted = ' or '.join(f'`{name}: {value}`' for value in values)
        raise ValueError(
            f'{where} has `{name}: {messages.bare(got)}`; wanted {wanted}, the'
            f' only value{"s" if values[1:] else ""} that this version supports'
            f' in a {self.model_type} model. Use another model.')
    required, optional, fixed, ignored = self.groups()
    missing = sorted(required - fields.keys())
    if missing:
      raise ValueError(
          f'{where} lacks the fields {missing}; wanted {sorted(required)}.'
          ' Use the config.json of the checkpoint.')
    unknown = sorted(fields.keys() - required - optional - fixed - ignored)
    if unknown:
      names = messages.one_line(','.join(unknown))
      raise ValueError(
          f'{where} has the unknown fields {messages.shorten(unknown)}; wanted'
          f' only known fields of `model_type: {self.model_type}`, because'
          ' another field may change the computation. Use another model or, if'
          f' they have no effect, give --model_ignore_fields={names}.')
    check_kinds(
        fields, {**self._own(_KINDS), **self.kinds}, where,
        never_null=required | self.positive | (
            self._own(dict.fromkeys((*_NEVER_NULL, *_POSITIVE))).keys()))
    check_end_tokens(fields, where)
    for source in rope.SOURCES:
      check_kinds(fields.get(source) or {}, rope.KINDS, f'{where}, {source}')
    positive = self._own(_POSITIVE) | dict.fromkeys(self.positive, 2**31)
    for name, most in positive.items():
      if not 0 < fields.get(name, 1) <= most:
        raise ValueError(
            f'{where} has {name} = {messages.shorten(fields[name])}; wanted a'
            f' positive number up to {most}. Correct the field.')

  def to_hf(self, config: config_lib.ModelConfig, dtype: str) -> dict[str, Any]:
    """Builds a `config.json` for old and new versions of transformers.

    Args:
      config: Config of the model.
      dtype: Dtype of the stored weights, for example `float32`.
    """
    eos = config.eos_token_id
    return {
        'architectures': [self.architecture],
        'model_type': self.model_type} | self._own({
            'bos_token_id': config.bos_token_id,
            'eos_token_id': list(eos) if isinstance(eos, tuple) else eos,
            'head_dim': config.d_head,
            'hidden_act': next(
                theirs for theirs, name in self.activations.items()
                if name == config.activation),
            'hidden_size': config.d_model,
            'intermediate_size': config.d_ff,
            'max_position_embeddings': rope.longest(config),
            'num_attention_heads': config.num_heads,
            'num_hidden_layers': config.num_layers,
            'num_key_value_heads': config.num_kv_heads,
            'pad_token_id': config.pad_token_id,
            'rms_norm_eps': config.norm_eps,
            'rope_scaling': rope.write(config.rope_scaling),
            'rope_theta': config.rope_theta,
            **rope.write_share(config),
            'tie_word_embeddings': config.tie_embeddings,
            'torch_dtype': dtype,
            'vocab_size': config.vocab_size}) | self.write(config)


def with_biases(modules: Mapping[str, str]) -> dict[str, str]:
  """Tensor names of leaves and their biases, from names of torch's modules."""
  return {f'{leaf}{ending}': f'{module}.{tensor}'
          for ending, tensor in (('', 'weight'), ('_bias', 'bias'))
          for leaf, module in modules.items()}


def layer_windows(
    get: Callable[[str], Any], window: int | None, sliding: list[bool],
    where: str) -> tuple[int, ...]:
  """Window of each layer, from `layer_types` or the family's own rule.

  Args:
    get: Value of a field by its name.
    window: Tokens that a layer with a window reads; None: no layer has one.
    sliding: Whether each layer has a window by the family's rule.
    where: Path of the file, for messages.

  Raises:
    ValueError: a layer's type is unknown, or their number is another.
  """
  kinds = get('layer_types')
  if kinds is not None:
    known = {'full_attention': False, 'sliding_attention': True}
    if len(kinds) != len(sliding) or not set(map(str, kinds)) <= known.keys():
      raise ValueError(
          f'{where} has layer_types = {messages.shorten(kinds)}; wanted'
          f' {len(sliding)} of {list(known)}. Correct the field.')
    sliding = [known[kind] for kind in kinds]
  if not window or not any(sliding):
    return ()
  return tuple(window if own else 0 for own in sliding)


def layer_types(config: config_lib.ModelConfig) -> list[str]:
  """The inverse of `layer_windows`."""
  return ['sliding_attention' if window else 'full_attention'
          for window in config.windows or (0,) * config.num_layers]


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def check_end_tokens(fields: Mapping[str, Any], where: str) -> None:
  """Raises ValueError unless `eos_token_id` is an id, ids or null."""
  eos = fields.get('eos_token_id')
  for value in eos if isinstance(eos, list) else () if eos is None else (eos,):
    if type(value) is not int:
      raise ValueError(
          f'{where} has eos_token_id = {messages.shorten(eos)}; wanted int or a'
          ' list of int. Correct the field.')


def check_kinds(
    fields: Mapping[str, Any], wanted: Mapping[str, tuple[type, ...]],
    where: str, never_null: Collection[str] = ()) -> None:
  """Raises ValueError for a value of another type; some may be null."""
  for name, kinds in wanted.items():
    value = fields.get(name)
    fits = name not in fields or type(value) in kinds or (
        value is None and name not in never_null)
    if fits and float in kinds and isinstance(value, int):
      fits = abs(value) <= sys.float_info.max
    if not fits:
      raise ValueError(
          f'{where} has {name} = {messages.shorten(value)}; wanted'
          f' {" or ".join(kind.__name__ for kind in kinds)}. Correct the'
          ' field.')
