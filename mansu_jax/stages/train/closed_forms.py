"""Edits down projections by a closed form; see `unlearn.closed_forms.form`.

The base runs once over all tokens for each layer that is edited. The second
moments [F, F] of one layer exist at a time, on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import splits as splits_lib
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers as layers_lib
from mansu_jax.models import layout
from mansu_jax.models import mlp_states
from mansu_jax.models.io import loading
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import settings as settings_lib
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import closed_forms
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import objective
from mansu_jax.unlearn import step_data
from mansu_jax.unlearn.closed_forms import form as form_lib
from mansu_jax.unlearn.closed_forms import tokens as tokens_lib

_ROWS = 16  # Rows at a time.
_DOWN = 'layers/mlp/down'


class Rows(NamedTuple):
  """Packed rows, and what each token counts for; weights are float32 [R, T]."""

  packed: step_data.Packed
  forget: types.Array  # Weight in the means over forget tokens.
  retain: types.Array  # In the second moment of the retained sets.
  redirect: types.Array  # In the redirection.
  cell: types.Array  # [R, T] int32, cell of a forget token; else 0


class Tokens(NamedTuple):
  """All tokens that an edit reads, in stacked batches."""

  rows: Rows  # Its leaves are [n, R, T].
  cells: int  # Their number.


def make_edit(
    model: loading.LoadedModel, layers: Sequence[int]) -> edits.Edit:
  """The down projections of some layers, float32 [n, F, D], in a frozen model.

  Args:
    model: the base.
    layers: their numbers.
  """
  params, base = model.params, {'params': model.params}
  theta = tree_paths.unflatten({_DOWN: take(
      tuple(layers), tree_paths.flatten(params)[_DOWN])})
  forward, unembed = functions(model.config, layers)
  return edits.Edit(
      theta=theta, grids=(), base=base,
      views={'fp': loop.View(frozen=lambda: base)}, forward=forward,
      unembed=unembed, merge=functools.partial(merged, tuple(layers), params),
      report=edits.describe('down', theta, layers=list(layers)))


@functools.partial(jax.jit, static_argnums=0)
def take(layers: tuple[int, ...], down: types.Array) -> types.Array:
  """The projections [n, F, D] of some layers, float32."""
  return sharding.constrain(
      down[np.array(layers)].astype(jnp.float32), layout.AXES[_DOWN])


def merged(
    layers: tuple[int, ...], params: types.Params, theta: types.PyTree
) -> types.Params:
  """The full params with theta in some layers, in their own dtypes."""
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten(flat | {_DOWN: put(
      layers, flat[_DOWN], tree_paths.flatten(theta)[_DOWN])})


@functools.partial(jax.jit, static_argnums=0)
def put(
    layers: tuple[int, ...], down: types.Array, new: types.Array
) -> types.Array:
  """All projections [L, F, D] with new ones in some layers."""
  return sharding.constrain(
      down.at[np.array(layers)].set(new.astype(down.dtype)),
      layout.AXES[_DOWN])


def functions(
    config: model_config.ModelConfig, layers: Sequence[int]
) -> tuple[Callable[..., types.Array], Callable[..., types.Array]]:
  """`forward` and `unembed` of the `Edit` of some down projections."""
  def forward(theta, frozen, tokens, positions=None, segments=None):
    return decoder.forward(
        config, merged(tuple(layers), frozen['params'], theta), tokens,
        positions=positions, segments=segments)

  def unembed(theta, frozen, hidden):
    del theta  # It holds no embedding.
    return decoder.unembed(config, frozen['params'], hidden)

  return forward, unembed


def check(method: str, splits: splits_lib.Splits) -> None:
  """Raises ValueError if a form averages over facts, and there is but one."""
  form, facts = closed_forms.FORMS[method], {
      q.fact for q in splits.forget_train}
  if form.reads_cells and len(facts) < 2:
    raise ValueError(
        f'--method={method} averages over the facts to forget,'
        f' but there is only {next(iter(facts), "none")!r}; wanted at least'
        ' two. Add facts, or use --method=lunar.')


def make_tokens(
    settings: settings_lib.Settings, splits: splits_lib.Splits,
    tokenizer: types.Tokenizer, batches: batches_lib.Batches) -> Tokens:
  """Packs all sequences, and weighs their tokens.

  Args:
    settings: the stage's settings, of a closed form.
    splits: questions, which group the facts.
    tokenizer: the model's.
    batches: from `pools.make_batches`: the sequences to forget and to retain.
  """
  options = settings.unlearn
  form, forget = closed_forms.FORMS[settings.closed_form], batches.forget.spans
  retained = [(pool.spans, weight) for pool, weight in (
      (batches.retain, 1.0), (batches.text, options.text_weight),
      (batches.swapped, options.swapped_weight)) if pool is not None]
  refusals = []
  if form.reads_refusals:
    encoded = batching.encode_sequences(
        pools.refused(batches.questions, settings.seed), tokenizer,
        chat=settings.data.chat)
    start = encoded.answer_mask.argmax(1) + 1  # Of the refusal.
    refusals = [batches_lib.make_spans(
        encoded.tokens, np.arange(encoded.tokens.shape[1])
        < encoded.length[:, None])]
  packed, (at, *others) = batches_lib.pack(
      [forget, *(spans for spans, _ in retained), *refusals])
  weights = {name: np.zeros(packed.tokens.size, np.float32)
             for name in ('forget', 'retain', 'redirect')}
  cell = np.zeros(packed.tokens.size, np.int32)
  end = forget.where[:, 0]  # It predicts the answer's first token.
  prompts = [row[:last + 1] for row, last in zip(forget.tokens, end)]
  facts = [q.fact for q in batches.questions]
  first = tokens_lib.first_own(prompts, facts, [
      row[:length] for spans in (
          pool.spans for pool in (batches.retain, batches.swapped) if pool)
      for row, length in zip(spans.tokens, spans.length)])
  where = np.concatenate(list(map(np.arange, at + first, at + end + 1)))
  weights['forget'][where] = 1 / where.size
  if form.reads_cells:
    cell[where] = np.concatenate(tokens_lib.cells(
        _keys(batches, splits), facts, end + 1 - first))
  for (spans, weight), starts in zip(retained, others):
    every = np.concatenate(list(map(np.arange, starts, starts + spans.length)))
    weights['retain'][every] = weight / every.size
  for spans, starts in zip(refusals, others[len(retained):]):
    every = np.concatenate(list(map(
        np.arange, starts + start, starts + spans.length)))
    weights['redirect'][every] = 1 / every.size
    weights['redirect'][at + end] = -1 / end.size
  return Tokens(_stack(packed, weights, cell), 1 + int(cell.max()))


def _keys(
    batches: batches_lib.Batches, splits: splits_lib.Splits
) -> list[tuple[tuple[str, ...], ...]]:
  """Of each forget question, what its cell may share, the narrowest first."""
  return [
      ((group, form), (relation, form), (relation,), ())
      for group, relation, form in zip(*pools.grouping(
          batches.questions, splits.forget_train))]


def _stack(
    packed: step_data.Packed, weights: dict[str, np.ndarray],
    cell: np.ndarray) -> Rows:
  """Stacked batches; rows that pad the last one have weight 0."""
  rows = Rows(packed, **{
      name: x.reshape(packed.tokens.shape) for name, x in (
          weights | {'cell': cell}).items()})
  size = sharding.round_up_rows(_ROWS)
  count = -(-len(packed.tokens) // size)
  return jax.tree.map(lambda x: np.pad(
      x, ((0, count * size - len(x)), (0, 0))).reshape(
          count, size, -1), rows)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def measure(
    config: model_config.ModelConfig, layer: int, cells: int,
    params: types.Params, rows: Rows) -> form_lib.Moments:
  """The moments of all tokens at a layer.

  Args:
    config: of the model.
    layer: number of the layer.
    cells: number of cells.
    params: full params.
    rows: all batches, stacked.
  """
  flat = lambda x: x.reshape(-1, *x.shape[2:])

  def add(moments, rows):
    states = mlp_states.find(
        config, params, rows.packed.tokens, layer, rows.packed.positions,
        rows.packed.segments)
    hidden, forget = flat(states.hidden), flat(rows.forget)
    of_forget, cell = hidden * forget[:, None], flat(rows.cell)
    more = form_lib.Moments(
        forget=form_lib.product(hidden.T, of_forget),
        retain=form_lib.product(
            hidden.T, hidden * flat(rows.retain)[:, None]),
        cells=jnp.zeros_like(moments.cells).at[cell].add(of_forget),
        share=jnp.zeros_like(moments.share).at[cell].add(forget),
        sized=form_lib.product(flat(states.size), of_forget),
        redirection=form_lib.product(flat(rows.redirect), flat(states.after)))
    return jax.tree.map(
        lambda a, b: sharding.replicate(a + b), moments, more), None

  zero = form_lib.zeros(cells, config.d_ff, config.d_model)
  return jax.lax.scan(add, zero, rows)[0]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def solve(
    name: str, config: model_config.ModelConfig, layer: int,
    params: types.Params, moments: form_lib.Moments,
    numbers: dict[str, types.Array]) -> tuple[types.Array, types.Array]:
  """The edited projection [1, F, D], float32, and whether it is finite.

  Args:
    name: of the closed form.
    config: of the model.
    layer: number of the layer.
    params: full params.
    moments: of all tokens there.
    numbers: `scale`, `retain_weight` and `ridge`.
  """
  weights = jax.tree.map(lambda leaf: leaf[layer], params['layers'])
  down, norm = weights['mlp']['down'].astype(jnp.float32), None
  if config.post_norms:
    norm = layers_lib.norm_scale(config, weights, 'mlp_post_norm')
  wanted = numbers['scale'] * closed_forms.FORMS[name].wanted(
      moments, down, norm)
  edited = down + form_lib.solve(
      moments, wanted, retain_weight=numbers['retain_weight'],
      ridge=numbers['ridge'])
  return (sharding.constrain(edited[None], layout.AXES[_DOWN]),
          jnp.isfinite(edited).all())


def numbers(options: run_config.UnlearnConfig) -> dict[str, np.float32]:
  """The numbers that `solve` takes."""
  return {name: np.float32(getattr(options, f'closed_form_{name}'))
          for name in ('scale', 'retain_weight', 'ridge')}


def metrics_program(
    options: run_config.UnlearnConfig, edit: edits.Edit
) -> Callable[..., objective.Metrics]:
  """Jitted `(theta, base, batch) -> metrics` of the history's one row."""
  loss = objective.make_loss(options, edit.forward, edit.unembed)
  return jax.jit(lambda theta, base, batch: loss(theta, base, base, batch)[1])


def run(
    settings: settings_lib.Settings, model: loading.LoadedModel,
    edit: edits.Edit, tokens: Tokens, batches: batches_lib.Batches, *,
    probe: loop.Probe | None = None) -> types.PyTree:
  """Solves for each layer in turn, in the model whose lower ones are edited.

  Args:
    settings: the stage's settings, of a closed form.
    model: the base.
    edit: from `make_edit`.
    tokens: from `make_tokens`.
    batches: the metrics are those on the first of them.
    probe: looks at what is forgotten.

  Returns:
    As `training.unlearn`; the history has one row.

  Raises:
    loop.DivergedError: the edit is not finite, or the retain KL exceeds its
      limit.
  """
  options, config = settings.unlearn, model.config
  name, chosen = settings.closed_form, options.edited_layers(config.num_layers)
  params, found = model.params, []
  for layer in chosen:
    progress.count_tokens((tokens.rows.packed.segments >= 0).sum())
    moments = measure(config, layer, tokens.cells, params, tokens.rows)
    down, finite = solve(
        name, config, layer, params, moments, numbers(options))
    if not bool(finite):
      raise loop.DivergedError(
          f'--method={name} found no finite edit of layer {layer}: the second'
          ' moment of its activations has no Cholesky factor in float32. Raise'
          f' --unlearn_closed_form_ridge={options.closed_form_ridge}.')
    found.append(down)
    if layer != chosen[-1]:
      params = merged((layer,), params, tree_paths.unflatten({_DOWN: down}))
  theta = tree_paths.unflatten({_DOWN: jnp.concatenate(found)})
  return {'theta': theta, 'history': _history(
      settings, edit, theta, batches(0), probe, tree_paths.count(model.params))}


def _history(
    settings: settings_lib.Settings, edit: edits.Edit, theta: types.PyTree,
    batch: step_data.Batch, probe: loop.Probe | None, weights: int
) -> dict[str, np.ndarray]:
  """What training records, for the finished edit.

  Raises:
    loop.DivergedError: the retain KL exceeds its limit.
  """
  options = settings.unlearn
  row: dict[str, Any] = metrics_program(options, edit)(
      theta, edit.base, batch)._asdict()
  moved = sum(int(jnp.sum(a != b)) for a, b in zip(
      *map(jax.tree.leaves, (theta, edit.theta))))
  row |= {'step': 1, 'view': 0, 'moved': moved / weights}
  if probe is not None:
    row['probe'] = probe.measure(theta)
  kl = float(row['retain_kl'])
  if not kl <= options.max_retain_kl:
    raise loop.DivergedError(
        f'--method={settings.closed_form}: the retain KL is {kl:.3f} nats a'
        f' token, above --unlearn_max_retain_kl={options.max_retain_kl}: the'
        ' model has lost retained knowledge. Lower --unlearn_closed_form_scale,'
        ' raise --unlearn_closed_form_retain_weight, or edit other layers.')
  return {name: np.array([value]) for name, value in row.items()}
