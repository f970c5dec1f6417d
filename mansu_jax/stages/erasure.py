"""CAD on the circuit and AS-NC off it, readability, and their nulls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import config as run_config
from mansu_jax import quant
from mansu_jax import types
from mansu_jax.circuits import divergence
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import select
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.stages import attribution
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.stages import quantizers
from mansu_jax.stages import readability

# The base answers too few pairs, or there are none.
_NO_PAIRS = (eap_ig.TooFewAnswered, pairs_lib.NoPairs)
_COPIED_BACK = 3  # Random circuits whose weights are copied back.
_HALVES = 5  # Random halves of the circuit, likewise.
_MATCHED = 0.05  # How far a control may be off the share that it shall answer.
_LEAST_RANDOM = 100  # Random circuits, for a 95 % level.

Pairs = list[pairs_lib.AttributionPair]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Models:
  """What is compared; models are made when they are run, and not kept.

  Attributes:
    after: the unlearned model at each precision, full precision first.
    beside: models that give nulls of one value.
  """

  after: Mapping[str, Callable[[], types.Params]]
  beside: Mapping[str, Callable[[], types.Params]]


def measure(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    quantize: quantizers.Quantizers, model: Any, found: attribution.Found,
    unlearned: types.Params) -> dict[str, Any]:
  """CAD, AS-NC, readability and property S, JSON-able.

  Args:
    config: the run's.
    inputs: its data; retain pairs are made of the retain questions.
    quantize: its quantizers; the leading one gives a null.
    model: the base model.
    found: the circuit C, with its scores.
    unlearned: full params after.

  Returns:
    `cad`, `as_nc`, `readability`, `suppression_control`, `copy_back` and `S`.
    With --eval_cad_pairs=0, or where there are no pairs or the base answers too
    few, one or both of the first two are {} and S is inconclusive; where there
    is nothing to read, so are the next three, and S is not passed.
  """
  views = {'fp': lambda params: params} | {
      name: functools.partial(quantize, name)
      for name in config.quant_schemes}
  beside = {}
  out, reasons, circuit = dict(_NOTHING), [], found.circuit
  try:
    reader = readability.Reader(config, inputs, model, unlearned, views)
  except readability.NothingToRead as error:
    logging.warning('Readability is not measured: %s', error)
    out['readability'] = {'reason': str(error)}
  else:
    control = reader.control(_forget_pairs(config, inputs, model))
    if abs(control.reached - control.wanted) <= _MATCHED:
      beside['suppression'] = lambda: control.params
    out['suppression_control'] = {
        'wanted': control.wanted, 'answered': control.reached,
        'scale': control.scale}
    out['readability'] = reader.measure(control)
    rng, layers = _draws(config, model)
    out['copy_back'] = reader.copy_back(
        circuit, [select.matched_random(circuit, layers, rng)
                  for _ in range(_COPIED_BACK)],
        _halves(model, found, layers, rng),
        [name for name in views  # Others would calibrate anew.
         if name not in quant.CALIBRATED])
    del reader
  if not config.eval.cad_pairs:
    return out | {'S': _inconclusive('--eval_cad_pairs=0 skips CAD and AS-NC')}
  after = {name: functools.partial(view, unlearned)
           for name, view in views.items()}
  quantized = {'base_quantized': functools.partial(
      views[config.quant_schemes[0]], model.params)}
  for key, name, part, compared in (
      ('cad', 'CAD', _cad, quantized | beside),
      # A control that hides answers leaves what is off C as it is: no null.
      ('as_nc', 'AS-NC', _as_nc, quantized)):
    try:
      out[key] = part(config, inputs, model, circuit, Models(
          after=after, beside=compared))
    except _NO_PAIRS as error:  # Keep the rest of the run.
      logging.warning('%s is not measured: %s', name, error)
      reasons.append(f'{name} is not measured: {error}')
  if reasons:
    return out | {'S': _inconclusive(' '.join(reasons))}
  return out | {'S': divergence.at_every_precision(out['cad'], out['as_nc'])}


_NOTHING = {key: {} for key in (
    'cad', 'as_nc', 'readability', 'suppression_control', 'copy_back')}


def not_measured(why: str) -> dict[str, Any]:
  """What `measure` gives where there is nothing to measure on."""
  return _NOTHING | {'S': _inconclusive(why)}


def _inconclusive(why: str) -> dict[str, Any]:
  return {'value': None, 'interval': [None, None], 'threshold': None,
          'passed': 'inconclusive', 'reason': why}


def _draws(config, model):
  """A generator of random circuits' draws, and their layers."""
  return np.random.default_rng(config.seed), select.layer_range(
      config.circuit, model.config.num_layers)


def _halves(model, found, layers, rng) -> list[graph.Circuit]:
  """The best half of the circuit by its scores, then random ones."""
  best = select.best_half(found.circuit, found.means, model.config)
  if not best.kinds:
    return []
  return [best] + [
      select.matched_random(best, layers, rng, among=found.circuit)
      for _ in range(_HALVES)]


def _forget_pairs(config, inputs, model) -> Pairs:
  """The pairs of CAD; none where none can be made."""
  try:
    pairs = attribution.forget_pairs(config, inputs.splits, model.tokenizer)
  except pairs_lib.NoPairs:
    return []
  return pairs[:config.eval.cad_pairs]


def _divergence(
    config: run_config.RunConfig, model: Any, pairs: Pairs, models: Models,
    nodes: graph.Circuit, draw: Any) -> dict[str, Any]:
  """`divergence.measure` in full precision, and `by_precision`."""
  batches = pair_batches.pack(pairs, config.attribution.batch)
  run = lambda params: eap_ig.score_pairs(
      model.config, params, batches, steps=config.attribution.steps)
  base, answered = eap_ig.keep_answered(run(model.params))
  kept = lambda make: eap_ig.PairScores(*(x[answered] for x in run(make())))
  facts = np.array([p.fact for p in pairs])[answered]
  beside = {name: kept(make) for name, make in models.beside.items()}
  found = {name: divergence.measure(
      base, kept(make), beside, nodes, facts, random_nodes=draw,
      random_circuits=max(_LEAST_RANDOM, config.circuit.random_circuits),
      resamples=config.eval.bootstrap, seed=config.seed)
           for name, make in models.after.items()}
  first, *rest = found
  return found[first] | {'by_precision': {name: found[name] for name in rest}}


def _random(config, model, circuit):
  """Draws random circuits of the circuit's shape; None: there are no others."""
  _, layers = _draws(config, model)
  if select.fills(circuit, layers):
    return None
  return lambda rng: select.matched_random(circuit, layers, rng)


def _cad(config, inputs, model, circuit, models) -> dict[str, Any]:
  """On the circuit, forget pairs."""
  pairs = attribution.forget_pairs(config, inputs.splits, model.tokenizer)
  return _divergence(
      config, model, pairs[:config.eval.cad_pairs], models, circuit,
      _random(config, model, circuit))


def _as_nc(config, inputs, model, circuit, models) -> dict[str, Any]:
  """Off the circuit, retain pairs."""
  pairs = attribution.retain_pairs(config, inputs.splits, model.tokenizer)
  outside = lambda circuit: divergence.outside(
      circuit, config.attribution.level)
  draw = _random(config, model, circuit)
  return _divergence(
      config, model, pairs[:config.eval.cad_pairs], models, outside(circuit),
      draw and (lambda rng: outside(draw(rng))))
