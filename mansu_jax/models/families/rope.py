"""Rotary positions in a `config.json`: base, scaling and share of a head."""

from __future__ import annotations

from collections.abc import Collection, Mapping
import math
from typing import Any

from mansu_jax.models import config as config_lib
from mansu_jax.runtime import messages

# Types of the fields of `rope_scaling` and `rope_parameters`.
KINDS = dict.fromkeys(
    ('factor', 'low_freq_factor', 'high_freq_factor', 'rope_theta',
     'partial_rotary_factor', 'attention_factor', 'beta_fast', 'beta_slow',
     'mscale', 'mscale_all_dim'), (int, float))
KINDS |= {'original_max_position_embeddings': (int,),
          'rope_type': (str,), 'type': (str,), 'truncate': (bool,),
          'short_factor': (list,), 'long_factor': (list,)}
# The fields of a `config.json` that hold these.
SOURCES = 'rope_scaling', 'rope_parameters'
# Kinds of layers for which some families have a part each.
PARTS = 'full_attention', 'sliding_attention'
# Field of a `RopeScaling` -> its name in a `config.json`.
_SCALING_FIELDS = {
    'factor': 'factor',
    'original_max_position': 'original_max_position_embeddings',
    'low_freq_factor': 'low_freq_factor',
    'high_freq_factor': 'high_freq_factor',
    'attention_factor': 'attention_factor',
    'beta_fast': 'beta_fast', 'beta_slow': 'beta_slow', 'truncate': 'truncate',
    'short_factors': 'short_factor', 'long_factors': 'long_factor'}


def without(
    fields: Mapping[str, Any], vouched: Collection[str]) -> dict[str, Any]:
  """Fields of a `config.json` without unknown ones of rotary positions.

  Args:
    fields: Of the `config.json`.
    vouched: The unknown ones, such as `rope_scaling.attn_factor`.
  """
  found = dict(fields)
  for source in SOURCES:
    if not isinstance(fields.get(source), dict):
      continue
    known = lambda part, source=source: {
        name: value for name, value in part.items()
        if name in KINDS or name in PARTS
        or f'{source}.{name}' not in vouched}
    found[source] = {
        name: known(value) if isinstance(value, dict) else value
        for name, value in known(fields[source]).items()}
  return found


def read(
    fields: Mapping[str, Any], default: float, default_share: float,
    max_position: int, where: str
) -> tuple[float, config_lib.RopeScaling | None, float]:
  """Reads what describes rotary positions, by old or new field names.

  Args:
    fields: Of the `config.json`.
    default: Base of the frequencies if the file has none.
    default_share: Share of a head that turns if the file has none.
    max_position: Longest context of the model, in tokens.
    where: Path of the file, for messages.

  Returns:
    The base, the scaling, and the share of a head that turns.

  Raises:
    ValueError: the fields contradict each other, or are not those of a known
      scaling.
  """
  scaling, unknown = {}, []
  for source in SOURCES:
    part = {name: value for name, value in (fields.get(source) or {}).items()
            if value is not None}
    unknown += [f'{source}.{name}' for name in sorted(part.keys() - KINDS)]
    for name in part.keys() & scaling.keys():
      if part[name] != scaling[name]:
        raise ValueError(
            f'{where} gives {name} as {messages.shorten(scaling[name])} in'
            f' {SOURCES[0]} and {messages.shorten(part[name])} in {SOURCES[1]};'
            ' wanted one value. Correct either field.')
    scaling |= part
  if unknown:
    names = messages.one_line(','.join(unknown))
    remedy = '.' if scaling.keys() & set(PARTS) else (
        f' or, if they have no effect, give --model_ignore_fields={names}.')
    raise ValueError(
        f'{where} has the unknown fields {messages.shorten(unknown)}; wanted'
        f' only {list(KINDS)} there, because another field may change the'
        f' computation. Use another model{remedy}')
  theta, share = (
      _one_of(fields, scaling, name, otherwise, where)
      for name, otherwise in (
          ('rope_theta', default),
          ('partial_rotary_factor', default_share)))
  legacy = scaling.pop('type', None)
  kind = scaling.pop('rope_type', None) or legacy or 'default'
  if kind == 'default' and not scaling:
    return theta, None, share
  if kind == 'yarn':
    _complete_yarn(scaling)
  elif kind == 'longrope':
    _complete_longrope(scaling, max_position)
  ours = {theirs: name for name, theirs in _SCALING_FIELDS.items()}
  wanted = config_lib.ROPE_FIELDS.get(kind)
  names = {_SCALING_FIELDS[name] for name in ('factor', *(wanted or ()))}
  if wanted is None or scaling.keys() != names:
    known = {'default': []} | {
        name: ['factor', *map(_SCALING_FIELDS.get, some)]
        for name, some in config_lib.ROPE_FIELDS.items()}
    raise ValueError(
        f'{where} has rotary scaling {messages.shorten(kind)} with the fields'
        f' {messages.shorten(sorted(scaling))}; wanted one of {known}. Use'
        ' another model.')
  for name, values in scaling.items():
    if isinstance(values, list) and not all(
        type(x) in (int, float) for x in values):
      raise ValueError(
          f'{where} has {name} = {messages.shorten(values)}; wanted a list of'
          ' numbers. Correct the field.')
  return theta, config_lib.RopeScaling(kind=kind, **{
      ours[name]: tuple(value) if isinstance(value, list) else value
      for name, value in scaling.items()}), share


def _one_of(
    fields: Mapping[str, Any], scaling: dict[str, Any], name: str,
    default: float, where: str) -> float:
  """A number that may stand in the config and in its rotary parameters."""
  found = {float(source[name]) for source in (fields, scaling)
           if source.get(name) is not None}
  scaling.pop(name, None)
  if len(set(map(config_lib.as_used, found))) > 1:
    raise ValueError(
        f'{where} gives {name} as {sorted(found)}; wanted one value. Correct'
        f' {name} or rope_parameters.')
  return found.pop() if found else default


def _complete_yarn(scaling: dict[str, Any]) -> None:
  """Fills in what transformers derives from the other fields."""
  scaling.setdefault('beta_fast', 32.0)
  scaling.setdefault('beta_slow', 1.0)
  scaling.setdefault('truncate', True)
  scales = [scaling.pop(name, 0) for name in ('mscale', 'mscale_all_dim')]
  size = math.log(max(scaling.get('factor', 1), 1))
  above, below = scales if all(scales) else (1, 0)
  scaling.setdefault('attention_factor', (
      (0.1 * above * size + 1) / (0.1 * below * size + 1)))


def _complete_longrope(scaling: dict[str, Any], max_position: int) -> None:
  """Fills in what transformers derives from the other fields."""
  trained = scaling.setdefault('original_max_position_embeddings', max_position)
  if trained < 2:
    return
  scaling.setdefault('factor', max(1.0, max_position / trained))
  scaling.setdefault('attention_factor', math.sqrt(
      1 + math.log(max(scaling['factor'], 1)) / math.log(trained)))


def write(
    scaling: config_lib.RopeScaling | None
) -> dict[str, Any] | None:
  """The inverse: the fields of `rope_scaling`."""
  if scaling is None:
    return None
  found = {'rope_type': scaling.kind} | {
      theirs: getattr(scaling, name)
      for name, theirs in _SCALING_FIELDS.items()}
  return {name: list(value) if isinstance(value, tuple) else value
          for name, value in found.items() if value is not None}


def longest(config: config_lib.ModelConfig) -> int:
  """The longest context, which is beyond that which this decoder runs."""
  scaling = config.rope_scaling
  if scaling is None or scaling.kind != 'longrope':
    return config.max_position
  return round(scaling.factor * scaling.original_max_position)


def write_share(config: config_lib.ModelConfig) -> dict[str, float]:
  """The field for the share of a head that rotary positions turn."""
  if not config.d_rotary:
    return {}
  return {'partial_rotary_factor': share_of(config.d_rotary, config.d_head)}


def share_of(rotary: int, width: int) -> float:
  """The share of a head of this width that holds `rotary` coordinates."""
  found = rotary / width
  if int(width * found) < rotary:  # Rounded down.
    found = math.nextafter(found, 1)
  return found
