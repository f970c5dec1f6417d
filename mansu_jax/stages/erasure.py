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
from mansu_jax.stages import evaluation
from mansu_jax.stages import inputs as inputs_lib


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
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any,
    circuit: graph.Circuit, unlearned: types.Params) -> dict[str, Any]:
  """CAD, AS-NC and property S, JSON-able.

  Args:
    config: the run's.
    inputs: its data; retain pairs are made of the retain questions.
    model: the base model.
    circuit: C.
    unlearned: full params after.

  Returns:
    `cad`, `as_nc` and `S`; with --eval_cad_pairs=0, or where the base answers
    too few pairs, the first two are None and S is inconclusive.
  """
  if not config.eval.cad_pairs:
    return _not_measured('--eval_cad_pairs=0 skips CAD and AS-NC')
  try:
    return _measure(config, inputs, model, circuit, unlearned)
  except eap_ig.TooFewAnswered as error:  # Keep the rest of the run.
    logging.warning('CAD and AS-NC are not measured: %s', error)
    return _not_measured(str(error))


def _not_measured(why: str) -> dict[str, Any]:
  return {'cad': None, 'as_nc': None, 'S': {
      'value': None, 'interval': [None, None], 'threshold': None,
      'passed': 'inconclusive', 'reason': why}}


def _measure(config, inputs, model, circuit, unlearned) -> dict[str, Any]:
  level, seed = config.attribution.level, config.seed
  layers = select.layer_range(config.circuit, model.config.num_layers)
  options = dict(resamples=config.eval.bootstrap // 4, seed=seed)
  scheme = config.quant_schemes[0]
  variants = [unlearned, evaluation.quantizer(model, scheme)(model.params)]

  forget = attribution.forget_pairs(
      config, inputs.splits, model.tokenizer)
  forget = forget[:config.eval.cad_pairs]
  scores, facts = _both_sides(config, model, forget, variants)
  draw = lambda rng: select.matched_random(circuit, layers, rng)
  cad = divergence.measure(
      *scores, circuit, facts, **options,
      random_nodes=None if select.fills(circuit, layers) else draw,
      random_circuits=max(20, config.circuit.random_circuits))

  retain = attribution.retain_pairs(
      config, inputs.splits, model.tokenizer)
  retain = retain[:config.eval.cad_pairs]
  scores, facts = _both_sides(config, model, retain, variants)
  as_nc = divergence.measure(
      *scores, divergence.outside(circuit, level), facts, **options)
  return {'cad': cad, 'as_nc': as_nc,
          'S': divergence.structural_erasure(cad, as_nc)}
