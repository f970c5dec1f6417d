"""CAD on the circuit and AS-NC off it, readability, and their nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import quant
from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import param_mask
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.erasure import divergence
from mansu_jax.erasure import readability as readability_lib
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import readability
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.statistics import verdict


class NothingOutside(ValueError):
  """The circuit holds every node that can be scored."""


# Of one of CAD and AS-NC: the base answers too few pairs, there are none, or
# there is nothing off the circuit.
_NOT_MEASURED = (eap_ig.TooFewAnswered, pairs_lib.NoPairs, NothingOutside)
_RANDOM_COPIED = 3  # Random circuits whose weights are copied back.
HALVES = 5  # Random halves of the circuit, likewise,
_DRAWN = 200  # of as many drawn.
_MATCHED = 0.05  # How far a control may be off the share that it shall answer.
_LEAST_RANDOM = 100  # Random circuits, for a 95 % level.

Pairs = list[pairs_lib.AttributionPair]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Models:
  """What is compared; models are made when they are run, and not kept.

  Attributes:
    after: the unlearned model at each precision, full precision first.
    quantized: the base under each quantizer, a null of one value: at a
      quantizer its own, in full precision the first's.
    control: what hides answers only, another; None: there is none.
  """

  after: Mapping[str, Callable[[], types.Params]]
  quantized: Mapping[str, Callable[[], types.Params]]
  control: types.Params | None = None


def measure(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    quantize: quantizers.Quantizers, model: Any, found: attribution.Found,
    unlearned: types.Params,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> dict[str, Any]:
  """CAD, AS-NC, readability and property S, JSON-able.

  Args:
    config: the run's.
    inputs: its data; retain pairs are made of the retain questions.
    quantize: its quantizers, which give nulls.
    model: the base model.
    found: the circuit C, with its scores.
    unlearned: full params after.
    cache: the stages of a run that can go on.

  Returns:
    `cad`, `as_nc`, `readability`, `suppression_control`, `copy_back` and `S`.
    With --eval_cad_pairs=0, or where there are no pairs or the base answers too
    few, one or both of the first two are {} and S is inconclusive; where there
    is nothing to read, so are the next three, and S is not passed.
  """
  views = quantizers.views(config, quantize)
  reasons, circuit, controls = [], found.circuit, []
  make_reader = lambda: readability.Reader(
      config, inputs, model, unlearned, views)

  def read():
    try:
      reader = make_reader()
    except readability.NothingToRead as error:
      logging.warning('Readability is not measured: %s', error)
      return {'readability': {'reason': str(error)}}
    control, out = _read(
        config, inputs, model, found, unlearned, reader, list(views))
    controls.append(control)
    return out

  out = _NOTHING | cache.get_or_compute_json('readability', read)

  def control():
    if not out['suppression_control'].get('matched'):
      return None
    if not controls:  # It is not kept.
      controls.append(make_reader().control(
          _forget_pairs(config, inputs, model)).params)
    return controls[0]

  if not config.eval.cad_pairs:
    return out | {
        'S': verdict.missing('--eval_cad_pairs=0 skips CAD and AS-NC')}
  after, quantized = ({
      name: functools.partial(view, params) for name, view in views.items()}
                      for params in (unlearned, model.params))
  del quantized['fp']
  for key, name, part, compared in (
      ('cad', 'CAD', _cad, control),
      # A control that hides answers leaves what is off C as it is: no null.
      ('as_nc', 'AS-NC', _as_nc, lambda: None)):
    measure_part = lambda part=part, compared=compared: part(
        config, inputs, model, circuit, Models(
            after=after, quantized=quantized, control=compared()))
    try:
      out[key] = cache.get_or_compute_json(key, measure_part)
    except _NOT_MEASURED as error:  # Keep the rest of the run.
      logging.warning('%s is not measured: %s', name, error)
      reasons.append(f'{name} is not measured: {error}')
  if reasons:
    return out | {'S': verdict.missing(' '.join(reasons))}
  return out | {'S': divergence.at_every_precision(out['cad'], out['as_nc'])}


def _read(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any,
    found: attribution.Found, unlearned: types.Params,
    reader: readability.Reader, precisions: list[str]
) -> tuple[types.Params | None, dict[str, Any]]:
  """The control's params, if it is matched, and what is read."""
  made = reader.control(_forget_pairs(config, inputs, model))
  matched = abs(made.reached - made.wanted) <= _MATCHED
  out = {'suppression_control': {
      'wanted': made.wanted, 'answered': made.reached, 'scale': made.scale,
      'matched': matched}}
  try:
    out['readability'] = reader.measure(made if matched else None)
  except readability_lib.NothingToRead as error:
    logging.warning('Readability is not measured: %s', error)
    out['readability'] = {'reason': str(error)}
  rng, layers = _draws(config, model)
  halves, moved = _halves(model, found, unlearned, layers, rng)
  out['copy_back'] = reader.copy_back(
      found.circuit, [select.matched_random(found.circuit, layers, rng)
                      for _ in range(_RANDOM_COPIED)],
      halves, moved,
      [name for name in precisions  # Others would calibrate anew.
       if name not in quant.CALIBRATED])
  return made.params if matched else None, out


_NOTHING = {key: {} for key in (
    'cad', 'as_nc', 'readability', 'suppression_control', 'copy_back')}


def not_measured(why: str) -> dict[str, Any]:
  """What `measure` gives where there is nothing to measure on."""
  return _NOTHING | {'S': verdict.missing(why)}


def _draws(config, model):
  """A generator of random circuits' draws, and their layers."""
  return np.random.default_rng(config.seed), select.layer_range(
      config.circuit, model.config.num_layers)


def _halves(
    model, found, unlearned, layers, rng
) -> tuple[list[graph.Circuit], list[float]]:
  """The best half of the circuit by its scores, then random ones.

  Of many random ones those that come nearest to the best one's share of the
  weights that moved, which is the second of what is returned, for each: what
  more of the edit is undone brings more back, whichever the nodes.
  """
  best = select.best_half(found.circuit, found.means, model.config)
  if not best.kinds:
    return [], []
  moved = param_mask.moved(model.params, unlearned)
  count = lambda c: sum(float(moved[k][c[k]].sum()) for k in graph.KINDS)
  total, most = max(count(found.circuit), 1.0), count(best)
  drawn = sorted(
      (select.matched_random(best, layers, rng, among=found.circuit)
       for _ in range(_DRAWN)), key=lambda c: abs(count(c) - most))
  halves = [best, *drawn[:HALVES]]
  return halves, [count(c) / total for c in halves]


def _forget_pairs(config, inputs, model) -> Pairs:
  """The pairs of CAD; none where none can be made."""
  try:
    pairs = prompt_pairs.forget_pairs(
        config.attribution, inputs.splits, model.tokenizer, seed=config.seed,
        chat=config.data.chat)
  except pairs_lib.NoPairs:
    return []
  return pairs[:config.eval.cad_pairs]


def _divergence(
    config: run_config.RunConfig, model: Any, pairs: Pairs, models: Models,
    nodes: graph.Circuit, draw: Any, name: str) -> dict[str, Any]:
  """`divergence.measure` in full precision, and `by_precision`."""
  batches = pair_batches.to_score(
      pairs, config.attribution.batch, model.config)
  run = lambda params: eap_ig.score_pairs(
      model.config, params, batches, steps=config.attribution.steps)
  base, answered = eap_ig.keep_answered(run(model.params))
  kept = lambda make: eap_ig.PairScores(*(x[answered] for x in run(make())))
  facts = np.array([p.fact for p in pairs])[answered]
  quantized = {name: kept(make) for name, make in models.quantized.items()}
  hides = {} if models.control is None else {
      'suppression': kept(lambda: models.control)}

  def beside(precision):
    names = quantizers.of_base(precision, list(quantized))
    return {'base_quantized': quantized[name] for name in names} | hides

  found = {name: divergence.measure(
      base, kept(make), beside(name), nodes, facts, random_nodes=draw,
      random_circuits=max(_LEAST_RANDOM, config.circuit.random_circuits),
      resamples=config.eval.bootstrap, seed=config.seed)
           for name, make in models.after.items()}
  first, *rest = found
  if null := found[first]['nulls'].get('random_circuits'):
    null |= select.count_same(null['same'], null['draws'], name)
  return found[first] | {'by_precision': {name: found[name] for name in rest}}


def _random(config, model, circuit):
  """Draws random circuits of the circuit's shape; None: there are no others."""
  _, layers = _draws(config, model)
  if select.fills(circuit, layers):
    return None
  return lambda rng: select.matched_random(circuit, layers, rng)


def _cad(config, inputs, model, circuit, models) -> dict[str, Any]:
  """On the circuit, forget pairs."""
  pairs = prompt_pairs.forget_pairs(
      config.attribution, inputs.splits, model.tokenizer, seed=config.seed,
      chat=config.data.chat)
  return _divergence(
      config, model, pairs[:config.eval.cad_pairs], models, circuit,
      _random(config, model, circuit), 'CAD')


def _as_nc(config, inputs, model, circuit, models) -> dict[str, Any]:
  """Off the circuit, retain pairs."""
  pairs = prompt_pairs.retain_pairs(
      config.attribution, inputs.splits, model.tokenizer, seed=config.seed,
      chat=config.data.chat)
  outside = lambda circuit: divergence.outside(
      circuit, config.attribution.level)
  draw, nodes = _random(config, model, circuit), outside(circuit)
  if not any(nodes[kind].any() for kind in graph.KINDS):
    raise NothingOutside(
        f'the circuit holds every node of --attribution_level='
        f'{config.attribution.level}, so that nothing is off it')
  return _divergence(
      config, model, pairs[:config.eval.cad_pairs], models, nodes,
      draw and (lambda rng: outside(draw(rng))), 'AS-NC')
