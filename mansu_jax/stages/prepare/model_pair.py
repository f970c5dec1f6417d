"""Finds, checks and loads a base and the model unlearned from it, for an audit.

`load` returns both in one storage type: that of most weights in the unlearned
model's file, or --export_dtype if it is not float32. A float32 base therefore
does not differ from its bfloat16 file by the conversion alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import hashlib
import json
from typing import Any

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import tokenization
from mansu_jax.eval import weight_change
from mansu_jax.models import config as model_config
from mansu_jax.models import layout
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import processes
from mansu_jax.stages.prepare import inputs as inputs_lib

# Smallest cosine of related weights; that of unrelated models is near 0.
_MIN_COSINE = 0.5
_MATRICES = ('embed', 'lm_head', *layout.MATRICES)
# Fields of a model's configuration that do not affect its outputs here.
_MAY_DIFFER = ('max_position', 'bos_token_id', 'eos_token_id', 'pad_token_id')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """A base and the model unlearned from it.

  Attributes:
    base: The base, with the tokenizer for both models.
    unlearned: Params of the unlearned model.
    changes: Change of each leaf.
    summary: JSON-able: source of the unlearned weights, storage types, and
      differences other than the weights.
  """

  base: loading.LoadedModel
  unlearned: types.Params
  changes: dict[str, weight_change.Change]
  summary: dict[str, Any]


def load(
    base_name: str, model_name: str, inputs: inputs_lib.Inputs, *,
    export_dtype: str, chat: bool,
    check: loading.Check = lambda config, tokenizer: None,
    ignore_fields: Sequence[str] = ()) -> Pair:
  """Finds both models, checks that they belong together, and loads them.

  Args:
    base_name: Value of --base.
    model_name: Value of --model.
    inputs: Data of the run.
    export_dtype: Value of --export_dtype.
    chat: Whether the chat template applies.
    check: Called before the weights are read; raises to refuse the models.
    ignore_fields: Value of --model_ignore_fields.

  Raises:
    ValueError: As `loading.load` and `check`; or configurations or tokenizers
      differ; or the weights are all equal, or unrelated.
  """
  def find():
    found = [loading.find(name, ignore_fields)
             for name in (base_name, model_name)]
    differing = _check_configs(*found)
    tokenizer, comparison = _common_tokenizer(*found, inputs, chat=chat)
    check(found[0].config, tokenizer)
    return found, differing, tokenizer, comparison

  found, differing, tokenizer, comparison = processes.raise_on_all(find)
  dtype = _common_dtype(export_dtype, found[1].stored)
  base, unlearned = (f.load(hf_io.EXPORT_DTYPES[dtype]) for f in found)
  changes = weight_change.compare(base.params, unlearned.params)
  _check_related(changes, base_name, model_name, dtype)
  summary = unlearned.source | {
      'stored_as': found[1].stored, 'base_stored_as': found[0].stored,
      'compared_as': dtype, 'tokenizers': comparison,
      'other_differences': differing} | _moved_beyond_rounding(
          base.params, unlearned.params, found[0].stored, dtype)
  return Pair(
      base=dataclasses.replace(base, tokenizer=tokenizer),
      unlearned=unlearned.params, changes=changes, summary=summary)


def _common_dtype(export_dtype: str, stored: str) -> str:
  """The export dtype for both models; see the module.

  Args:
    export_dtype: Value of --export_dtype.
    stored: Storage type of the unlearned model.
  """
  if export_dtype != 'float32':
    return export_dtype
  return stored if stored in hf_io.EXPORT_DTYPES else 'float32'


def _moved_beyond_rounding(
    base: types.Params, unlearned: types.Params, stored: str, dtype: str
) -> dict[str, float]:
  """The share of weights that differ even in the storage type of the base.

  Args:
    base: Params of the base.
    unlearned: Params of the unlearned model.
    stored: Storage type of the base.
    dtype: Type in which both are compared.

  Returns:
    `moved_beyond_rounding`; empty if the storage type is not coarser.
  """
  coarse = hf_io.EXPORT_DTYPES.get(stored)
  if coarse is None or stored == dtype or dtype != 'float32':
    return {}
  flat = tree_paths.flatten(base)
  found = [
      weight_change.compare({name: flat[name]}, {
          name: leaf.astype(coarse).astype(leaf.dtype)})
      for name, leaf in tree_paths.flatten(unlearned).items()]
  total = weight_change.total(
      change for one in found for change in one.values())
  return {'moved_beyond_rounding': total.statistics()['moved']}


def _check_configs(
    base: loading.Checkpoint, model: loading.Checkpoint) -> dict[str, Any]:
  """Compares the configurations of the models.

  Returns:
    The allowed differences, as `{field: [value of base, value of model]}`.

  Raises:
    ValueError: Another field differs.
  """
  differing = {}
  for field, base_value, model_value in model_config.differences(
      base.config, model.config):
    if field not in _MAY_DIFFER:
      raise ValueError(
          f'The config of --base={base.name} has {field} = {base_value}, but'
          f' that of --model={model.name} has {model_value}; wanted the same'
          ' architecture. Give the base that the model was derived from.')
    differing[field] = [base_value, model_value]
  return differing


def _common_tokenizer(
    base: loading.Checkpoint, model: loading.Checkpoint,
    inputs: inputs_lib.Inputs, *, chat: bool) -> tuple[Any, str]:
  """The tokenizer for both models, and a comparison in words.

  Args:
    base: The base.
    model: The unlearned model.
    inputs: Data of the run, which both tokenizers must encode equally.
    chat: Whether the chat template applies.

  Raises:
    ValueError: The tokenizers differ in a way that changes tokens.
  """
  first, second = base.tokenizer, model.tokenizer
  if first is None or second is None:
    comparison = {
        (True, True): 'there are none', (True, False): 'the base has none',
        (False, True): 'the unlearned model has none'}
    return first or second, comparison[first is None, second is None]
  for kind, table in (('token', _vocabulary), ('merge', _merges)):
    _check_same(base.name, model.name, kind, table(first), table(second))
  comparison = 'the same'
  if _rules_digest(first) != _rules_digest(second):
    _check_encodings(base, model, inputs, chat=chat)
    comparison = ('different, with the same vocabulary and merges; both encode'
                  ' the data of this audit equally, and the base\'s is used')
  if chat and first.chat_template != second.chat_template:
    comparison += '; their chat templates differ, and the base\'s is used'
  return first, comparison


def _vocabulary(tokenizer: types.PretrainedTokenizer) -> dict[str, int]:
  """`{token: id}` by id."""
  return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def _backend(tokenizer: types.PretrainedTokenizer) -> dict[str, Any]:
  """The content of tokenizer.json; empty for a tokenizer without it."""
  backend = getattr(tokenizer, 'backend_tokenizer', None)
  return json.loads(backend.to_str()) if backend is not None else {}


def _merges(tokenizer: types.PretrainedTokenizer) -> dict[str, int]:
  """`{merge: rank}`; empty for a tokenizer without merges."""
  found = _backend(tokenizer).get('model', {}).get('merges') or []
  return {m if isinstance(m, str) else ' '.join(m): rank
          for rank, m in enumerate(found)}


def _rules_digest(tokenizer: types.PretrainedTokenizer) -> str:
  """SHA-256 of all settings that affect tokens."""
  fields = {k: v for k, v in _backend(tokenizer).items()
            if k not in ('truncation', 'padding')}  # Set by the last call.
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _check_same(
    base: str, model: str, kind: str, base_table: Mapping[str, int],
    model_table: Mapping[str, int]) -> None:
  """Raises ValueError at the first entry that differs between two tables.

  Args:
    base: Name of the base.
    model: Name of the unlearned model.
    kind: What an entry is, for the error.
    base_table: Entries of the base's tokenizer.
    model_table: Entries of the unlearned model's tokenizer.
  """
  if base_table == model_table:
    return
  entry = next(k for k in (*base_table, *model_table)
               if base_table.get(k) != model_table.get(k))
  number = lambda table: table.get(entry, 'absent')
  raise ValueError(
      f'The tokenizers differ: {kind} {entry!r} is {number(base_table)} in that'
      f' of --base={base} and {number(model_table)} in that of --model={model};'
      ' wanted the same, so that scores compare the same tokens. Copy the'
      ' tokenizer of the base to the model, if it was trained with it.')


def _check_encodings(
    base: loading.Checkpoint, model: loading.Checkpoint,
    inputs: inputs_lib.Inputs, *, chat: bool) -> None:
  """Raises ValueError if the two tokenizers encode the data differently."""
  questions = [q for qs in inputs.evaluation.values() for q in qs]
  questions += [*inputs.splits.forget_train, *inputs.splits.retain_train]
  texts = [d.text for d in inputs.heldout_text]
  if chat:
    tokenization.check_template(base.tokenizer, base.name)
    questions = [dataclasses.replace(q, prompt=tokenization.prompt_text(
        q.prompt, base.tokenizer, chat=True)) for q in questions]
  encode: Callable[[types.Tokenizer], list[Any]] = lambda tokenizer: [
      *tokenization.encode_questions(questions, tokenizer),
      *tokenization.encode_prompts(texts, tokenizer)]
  for text, first, second in zip(
      [q.prompt for q in questions] + texts, encode(base.tokenizer),
      encode(model.tokenizer)):
    if first != second:
      raise ValueError(
          f'The tokenizers of --base={base.name} and --model={model.name}'
          f' encode {text[:60]!r} (or its choices) differently; wanted the same'
          ' tokens. Copy the tokenizer of the base to the model, if it was'
          ' trained with it.')


def _check_related(
    changes: Mapping[str, weight_change.Change], base: str, model: str,
    dtype: str) -> None:
  """Raises ValueError unless one model is derived from the other.

  Unrelated models have a low cosine in the embedding, or in most of the weights
  of all matrices.

  Args:
    changes: Change of each leaf.
    base: Name of the base.
    model: Name of the unlearned model.
    dtype: Type in which both are compared.
  """
  total = weight_change.total(changes.values()).statistics()
  if not total['moved']:
    raise ValueError(
        f'All {total["size"]} weights of --model={model} equal those of'
        f' --base={base}, as {dtype}: nothing was unlearned; wanted a model'
        ' that differs from its base. Give the unlearned one.')
  found = {name: changes[name].total().statistics()
           for name in _MATRICES if name in changes}
  unrelated = [name for name, s in found.items()
               if (s['cosine'] or 0) < _MIN_COSINE]
  share = sum(found[name]['size'] for name in unrelated) / sum(
      s['size'] for s in found.values())
  if 'embed' in unrelated or share > 0.5:
    first = found[unrelated[0]]
    raise ValueError(
        f'--model={model} is not derived from --base={base}: {unrelated[0]!r}'
        f' has a cosine of {first["cosine"] or 0:.3f} with that of the base and'
        f' a relative difference of {first["relative"] or 0:.2f}'
        f' ({len(unrelated)} of {len(found)} matrices are as far apart); wanted'
        f' a cosine of at least {_MIN_COSINE}. Give the base that the model was'
        ' derived from.')
