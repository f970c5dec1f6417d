"""CAD on the circuit and AS-NC off it, with their nulls (property S)."""

from __future__ import annotations

from typing import Any

from absl import logging
import numpy as np

from mansu_jax import config as run_config
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

# The base answers too few pairs, or there are none.
_NO_PAIRS = (eap_ig.TooFewAnswered, pairs_lib.NoPairs)


def _both_sides(
    config: run_config.RunConfig, model: Any,
    pairs: list[pairs_lib.AttributionPair], variants: list[types.Params]
) -> tuple[list[eap_ig.PairScores], np.ndarray]:
  """Scores of base and variants on the pairs that the base answers."""
  batches = pair_batches.pack(pairs, config.attribution.batch)
  run = lambda params: eap_ig.score_pairs(
      model.config, params, batches, steps=config.attribution.steps)
  base, answered = eap_ig.keep_answered(run(model.params))
  kept = [eap_ig.PairScores(*(x[answered] for x in run(params)))
          for params in variants]
  facts = np.array([p.fact for p in pairs])[answered]
  return [base, *kept], facts


def measure(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    quantize: quantizers.Quantizers, model: Any, circuit: graph.Circuit,
    unlearned: types.Params) -> dict[str, Any]:
  """CAD, AS-NC and property S, JSON-able.

  Args:
    config: the run's.
    inputs: its data; retain pairs are made of the retain questions.
    quantize: its quantizers; the leading one gives a null.
    model: the base model.
    circuit: C.
    unlearned: full params after.

  Returns:
    `cad`, `as_nc` and `S`; with --eval_cad_pairs=0, or where there are no
    pairs or the base answers too few, one or both of the first two are {} and
    S is inconclusive.
  """
  if not config.eval.cad_pairs:
    return not_measured('--eval_cad_pairs=0 skips CAD and AS-NC')
  variants = [unlearned, quantize(config.quant_schemes[0], model.params)]
  out, reasons = {}, []
  for key, name, part in (('cad', 'CAD', _cad), ('as_nc', 'AS-NC', _as_nc)):
    try:
      out[key] = part(config, inputs, model, circuit, variants)
    except _NO_PAIRS as error:  # Keep the rest of the run.
      logging.warning('%s is not measured: %s', name, error)
      reasons.append(f'{name} is not measured: {error}')
  if reasons:
    return not_measured(' '.join(reasons)) | out
  return out | {'S': divergence.structural_erasure(out['cad'], out['as_nc'])}


def not_measured(why: str) -> dict[str, Any]:
  """What `measure` gives where there is nothing to measure on."""
  return {'cad': {}, 'as_nc': {}, 'S': {
      'value': None, 'interval': [None, None], 'threshold': None,
      'passed': 'inconclusive', 'reason': why}}


def _resampling(config: run_config.RunConfig) -> dict[str, int]:
  return dict(resamples=config.eval.bootstrap // 4, seed=config.seed)


def _cad(config, inputs, model, circuit, variants) -> dict[str, Any]:
  """On the circuit, forget pairs."""
  layers = select.layer_range(config.circuit, model.config.num_layers)
  forget = attribution.forget_pairs(
      config, inputs.splits, model.tokenizer)
  forget = forget[:config.eval.cad_pairs]
  scores, facts = _both_sides(config, model, forget, variants)
  draw = lambda rng: select.matched_random(circuit, layers, rng)
  return divergence.measure(
      *scores, circuit, facts, **_resampling(config),
      random_nodes=None if select.fills(circuit, layers) else draw,
      random_circuits=max(20, config.circuit.random_circuits))


def _as_nc(config, inputs, model, circuit, variants) -> dict[str, Any]:
  """Off the circuit, retain pairs."""
  retain = attribution.retain_pairs(
      config, inputs.splits, model.tokenizer)
  retain = retain[:config.eval.cad_pairs]
  scores, facts = _both_sides(config, model, retain, variants)
  off = divergence.outside(circuit, config.attribution.level)
  return divergence.measure(*scores, off, facts, **_resampling(config))
