"""A base and what some tool made of it: found, checked, loaded (audit mode).

Both are compared, and measured, in one storage type: that of most weights in
the unlearned model's file, or the one that --export_dtype names if it is not
float32. So a base in float32 is no other model than its unlearned bfloat16
file for the cast alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import tokenization
from mansu_jax.eval import weight_change
from mansu_jax.models import config as model_config
from mansu_jax.models import layout
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import processes
from mansu_jax.stages.prepare import checks
from mansu_jax.stages.prepare import inputs as inputs_lib

_LEAST_COSINE = 0.5  # Of two states of one model; of two models it is near 0.
_MATRICES = ('embed', 'lm_head', *layout.MATRICES)
# Fields of the config that change nothing that is computed here.
_MAY_DIFFER = ('max_position', 'bos_token_id', 'eos_token_id', 'pad_token_id')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """Two states of one model.

  Attributes:
    base: before, with the tokenizer that both use.
    unlearned: params after.
    changes: what moved, by leaf.
    account: JSON-able: where the unlearned weights are from, in what they are
      stored and compared, and what differs beside the weights.
  """

  base: loading.LoadedModel
  unlearned: types.Params
  changes: dict[str, weight_change.Change]
  account: dict[str, Any]


def load(config: run_config.RunConfig, inputs: inputs_lib.Inputs) -> Pair:
  """Finds both models, checks that they are a pair, and loads them.

  Args:
    config: the run's, in audit mode.
    inputs: its data.

  Raises:
    ValueError: as `loading.load` and `checks.check_audit`; configs or
      tokenizers that differ, weights that are all equal, or unrelated.
  """
  def find():
    found = [loading.find(name) for name in (config.base, config.model)]
    differing = _check_configs(*found)
    tokenizer, told = _one_tokenizer(config, inputs, *found)
    checks.check_audit(config, inputs, found[0].config, tokenizer)
    return found, differing, tokenizer, told

  found, differing, tokenizer, told = processes.raise_on_all(find)
  dtype = _measured_as(config, found[1])
  base, unlearned = (f.load(hf_io.EXPORT_DTYPES[dtype]) for f in found)
  changes = weight_change.compare(base.params, unlearned.params)
  _check_related(config, changes, dtype)
  account = unlearned.source | {
      'stored_as': found[1].stored, 'base_stored_as': found[0].stored,
      'compared_as': dtype, 'tokenizers': told,
      'other_differences': differing} | _beyond_rounding(
          base.params, unlearned.params, found[0].stored, dtype)
  return Pair(
      base=dataclasses.replace(base, tokenizer=tokenizer),
      unlearned=unlearned.params, changes=changes, account=account)


def _measured_as(
    config: run_config.RunConfig, model: loading.Checkpoint) -> str:
  """The export dtype in which both are compared; see the module."""
  if config.export_dtype != 'float32':
    return config.export_dtype
  return model.stored if model.stored in hf_io.EXPORT_DTYPES else 'float32'


def _beyond_rounding(
    base: types.Params, unlearned: types.Params, stored: str, dtype: str
) -> dict[str, float]:
  """How much moved for more than the type in which the base was stored.

  Empty where that holds all that is compared. Else `moved_beyond_rounding`: the
  share of weights that are not the base's even when stored in its type.
  """
  kind = hf_io.EXPORT_DTYPES.get(stored)
  if kind is None or stored == dtype or dtype != 'float32':
    return {}
  flat = tree_paths.flatten(base)
  found = [
      weight_change.compare({name: flat[name]}, {
          name: leaf.astype(kind).astype(leaf.dtype)})
      for name, leaf in tree_paths.flatten(unlearned).items()]
  whole = weight_change.total(
      change for one in found for change in one.values())
  return {'moved_beyond_rounding': whole.statistics()['moved']}


def _check_configs(
    base: loading.Checkpoint, model: loading.Checkpoint) -> dict[str, Any]:
  """Fields that may differ and do, as {field: [base's, model's]}."""
  differing = {}
  for field, ours, theirs in model_config.differences(
      base.config, model.config):
    if field not in _MAY_DIFFER:
      raise ValueError(
          f'The config of --base={base.name} has {field} = {ours}, but that of'
          f' --model={model.name} {theirs}; wanted two states of one model.'
          ' Give the base that the model was made of.')
    differing[field] = [ours, theirs]
  return differing


def _one_tokenizer(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    base: loading.Checkpoint, model: loading.Checkpoint) -> tuple[Any, str]:
  """The tokenizer of both, and how alike the two are."""
  ours, theirs = base.tokenizer, model.tokenizer
  if ours is None or theirs is None:
    told = {(True, True): 'there are none', (True, False): 'the base has none',
            (False, True): 'the unlearned model has none'}
    return ours or theirs, told[ours is None, theirs is None]
  for what, of in (('token', _vocabulary), ('merge', _merges)):
    _check_same(config, what, of(ours), of(theirs))
  told = 'the same'
  if _rules(ours) != _rules(theirs):
    _check_encodings(config, inputs, ours, theirs)
    told = ('of the same vocabulary and merges, but not the same; they cut the'
            ' data of this audit alike, and the base\'s is used')
  if config.data.chat and ours.chat_template != theirs.chat_template:
    told += '; their chat templates differ, and the base\'s is used'
  return ours, told


def _vocabulary(tokenizer: Any) -> dict[str, int]:
  """`{token: id}` by id."""
  return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def _backend(tokenizer: Any) -> dict[str, Any]:
  """The content of its tokenizer.json; {} where it has none."""
  backend = getattr(tokenizer, 'backend_tokenizer', None)
  return json.loads(backend.to_str()) if backend is not None else {}


def _merges(tokenizer: Any) -> dict[str, int]:
  """`{merge: rank}`; {} of a tokenizer that does not merge."""
  found = _backend(tokenizer).get('model', {}).get('merges') or []
  return {m if isinstance(m, str) else ' '.join(m): rank
          for rank, m in enumerate(found)}


def _rules(tokenizer: Any) -> str:
  """SHA-256 of all that decides how it cuts text."""
  fields = {k: v for k, v in _backend(tokenizer).items()
            if k not in ('truncation', 'padding')}  # Set by its last use.
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _check_same(
    config: run_config.RunConfig, what: str, ours: dict[str, int],
    theirs: dict[str, int]) -> None:
  """Raises ValueError at the first entry that one of two tables lacks."""
  if ours == theirs:
    return
  first = next(k for k in (*ours, *theirs) if ours.get(k) != theirs.get(k))
  place = lambda table: table.get(first, 'absent')
  raise ValueError(
      f'The tokenizers differ: {what} {first!r} is {place(ours)} in that of'
      f' --base={config.base} and {place(theirs)} in that of'
      f' --model={config.model}; wanted the same, for scores to be of the same'
      ' tokens. Put the tokenizer of the base beside the model, if that is'
      ' what it was trained with.')


def _check_encodings(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, ours: Any,
    theirs: Any) -> None:
  """Raises ValueError where two tokenizers cut the data differently."""
  questions = [q for qs in inputs.evaluation.values() for q in qs]
  questions += [*inputs.splits.forget_train, *inputs.splits.retain_train]
  texts = [d.text for d in inputs.heldout_text]
  if config.data.chat:
    tokenization.check_template(ours, config.base)
    questions = [dataclasses.replace(q, prompt=tokenization.prompt_text(
        q.prompt, ours, chat=True)) for q in questions]
  cut = lambda tokenizer: [
      *tokenization.encode_questions(questions, tokenizer),
      *tokenization.encode_prompts(texts, tokenizer)]
  for text, one, other in zip(
      [q.prompt for q in questions] + texts, cut(ours), cut(theirs)):
    if one != other:
      raise ValueError(
          f'The tokenizers of --base={config.base} and --model={config.model}'
          f' cut {text[:60]!r} (or its choices) differently; wanted the same'
          ' tokens. Put the tokenizer of the base beside the model, if that is'
          ' what it was trained with.')


def _check_related(
    config: run_config.RunConfig,
    changes: dict[str, weight_change.Change], dtype: str) -> None:
  """Raises ValueError unless the weights are two states of one model.

  They are not where the embedding, or most weights of the matrices, point
  elsewhere than the base's.
  """
  whole = weight_change.total(changes.values()).statistics()
  if not whole['moved']:
    raise ValueError(
        f'All {whole["size"]} weights of --model={config.model} equal those of'
        f' --base={config.base}, as {dtype} holds them: nothing was unlearned;'
        ' wanted a model that differs from its base. Give the unlearned one.')
  found = {name: changes[name].total().statistics()
           for name in _MATRICES if name in changes}
  foreign = [name for name, s in found.items()
             if (s['cosine'] or 0) < _LEAST_COSINE]
  share = sum(found[name]['size'] for name in foreign) / sum(
      s['size'] for s in found.values())
  if 'embed' in foreign or share > 0.5:
    first = found[foreign[0]]
    raise ValueError(
        f'--model={config.model} is no state of --base={config.base}:'
        f' {foreign[0]!r} has a cosine of {first["cosine"] or 0:.3f} with the'
        f' base\'s and differs by {first["relative"] or 0:.2f} of its norm'
        f' ({len(foreign)} of {len(found)} matrices are as far off); wanted a'
        f' cosine of {_LEAST_COSINE} or more. Give the base that the model was'
        ' made of.')
