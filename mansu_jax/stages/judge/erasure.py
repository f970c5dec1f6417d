"""CAD on the circuit, AS-NC off it, readability, and their nulls.

They describe the structure of an edit and decide nothing; see
`erasure.divergence`.
"""

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
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.erasure import copy_back as copy_back_lib
from mansu_jax.erasure import divergence
from mansu_jax.erasure import readability as readability_lib
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.circuit import attribution
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import copy_back
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import readability
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules


class NothingOutside(ValueError):
  """The circuit holds every node that attribution scores."""


# Reasons for which CAD or AS-NC is not measured.
_NOT_MEASURED = (eap_ig.TooFewAnswered, pairs_lib.NoPairs, NothingOutside)
RANDOM_COPIED = 3  # Random circuits whose weights are copied back.
HALVES = 5  # Random halves of the circuit whose weights are copied back.
_MATCHED = 0.05  # Largest difference of a control's accuracy from its target.
_LEAST_RANDOM = 100  # Random circuits for a 95 % level.
_NOTHING = {key: {} for key in (
    'cad', 'as_nc', 'readability', 'suppression_control', 'copy_back',
    'unmeasured')}

Pairs = list[pairs_lib.AttributionPair]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Models:
  """The compared models, each made when it is run.

  Attributes:
    after: the unlearned model at each precision, full precision first.
    quantized: the base under each quantizer, a null.
    control: params that hide answers at the output, a null; or None.
  """

  after: Mapping[str, Callable[[], types.Params]]
  quantized: Mapping[str, Callable[[], types.Params]]
  control: types.Params | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
  """What every part of the measurement reads."""

  settings: settings_lib.Settings
  options: run_config.EvalConfig
  inputs: inputs_lib.Inputs
  model: loading.LoadedModel
  found: attribution.Found
  unlearned: types.Params

  @property
  def layers(self) -> range:
    return select.layer_range(
        self.settings.circuit, self.model.config.num_layers)

  def rng(self) -> np.random.Generator:
    return np.random.default_rng(self.settings.seed)

  def pairs(self, make: Callable[..., Pairs]) -> Pairs:
    pairs = make(self.settings, self.inputs.splits, self.model.tokenizer)
    return pairs[:self.options.cad_pairs]

  def forget_pairs(self) -> Pairs:
    """The pairs of CAD; [] if there are none."""
    try:
      return self.pairs(prompt_pairs.forget_pairs)
    except pairs_lib.NoPairs:
      return []

  def resampling(self) -> dict[str, int]:
    return dict(
        resamples=self.options.bootstrap, seed=self.settings.seed)


def measure(
    settings: settings_lib.Settings, options: run_config.EvalConfig,
    inputs: inputs_lib.Inputs, quantize: quantizers.Quantizers,
    model: loading.LoadedModel, found: attribution.Found,
    unlearned: types.Params,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> dict[str, Any]:
  """CAD, AS-NC and readability, JSON-able.

  Args:
    settings: of attribution; pairs are scored with the same ones.
    options: numbers of pairs, questions and resamples.
    inputs: questions.
    quantize: the run's quantizers, which give nulls.
    model: the base.
    found: the circuit C with its scores.
    unlearned: full params after unlearning.
    cache: keeps each part for a resumed run.

  Returns:
    `cad`, `as_nc`, `readability`, `suppression_control` and `copy_back`. A
    part that is not measured is {}, or holds a `reason`; `unmeasured` has the
    reasons of CAD and AS-NC.
  """
  views = quantize.views()
  job = _Job(settings=settings, options=options, inputs=inputs, model=model,
             found=found, unlearned=unlearned)
  controls = []
  make_reader = functools.partial(_make_reader, job, views)

  def read():
    try:
      reader = make_reader()
    except first_token_questions.NothingToRead as error:
      logging.warning('Readability is not measured: %s', error)
      return {'readability': {'reason': str(error)}}
    control, out = _read(job, reader, list(views))
    controls.append(control)
    return out

  out = _NOTHING | {'unmeasured': {}}
  out |= cache.get_or_compute_json('readability', read)

  def control():
    if not out['suppression_control'].get('matched'):
      return None
    if not controls:  # A resumed run makes it again.
      controls.append(make_reader().control(job.forget_pairs()).params)
    return controls[0]

  if not options.cad_pairs:
    return out | {'unmeasured': dict.fromkeys(
        ('cad', 'as_nc'), '--eval_cad_pairs=0 skips it')}
  after, quantized = ({
      name: functools.partial(view, params) for name, view in views.items()}
                      for params in (unlearned, model.params))
  del quantized['fp']
  for key, name, part, compared in (
      ('cad', 'CAD', _cad, control),
      # A control that hides answers changes nothing off C: it is no null.
      ('as_nc', 'AS-NC', _as_nc, lambda: None)):
    measure_part = lambda part=part, compared=compared: part(job, Models(
        after=after, quantized=quantized, control=compared()))
    try:
      out[key] = cache.get_or_compute_json(key, measure_part)
    except _NOT_MEASURED as error:  # The rest of the run continues.
      logging.warning('%s is not measured: %s', name, error)
      out['unmeasured'][key] = str(error)
  return out


def _make_reader(job: _Job, views: quantizers.Views) -> readability.Reader:
  questions = first_token_questions.choose(
      job.inputs, job.model.tokenizer, limit=job.options.lens_questions,
      seed=job.settings.seed, chat=job.settings.chat)
  return readability.Reader(
      questions, job.model, job.unlearned, views, **job.resampling())


def _read(
    job: _Job, reader: readability.Reader, precisions: list[str]
) -> tuple[types.Params | None, dict[str, Any]]:
  """The control's params if its accuracy matches, and the record's parts."""
  made = reader.control(job.forget_pairs())
  matched = abs(made.reached - made.wanted) <= _MATCHED
  out = {'suppression_control': {
      'wanted': made.wanted, 'answered': made.reached, 'scale': made.scale,
      'matched': matched}}
  try:
    out['readability'] = reader.measure(made if matched else None)
  except readability_lib.NothingToRead as error:
    logging.warning('Readability is not measured: %s', error)
    out['readability'] = {'reason': str(error)}
  rng, layers, circuit = job.rng(), job.layers, job.found.circuit
  halves = copy_back_lib.choose_halves(
      job.model.config, job.model.params, job.unlearned, circuit,
      job.found.means, layers, rng, count=HALVES)
  randoms = [select.matched_random(circuit, layers, rng)
             for _ in range(RANDOM_COPIED)]
  # Calibrated quantizers would calibrate again for every copy.
  cheap = [name for name in precisions if name not in quant.CALIBRATED]
  out['copy_back'] = copy_back.measure(
      reader, circuit, randoms, halves, cheap, **job.resampling())
  return made.params if matched else None, out


def not_measured(why: str) -> dict[str, Any]:
  """The result of `measure` without a circuit."""
  return _NOTHING | {'unmeasured': dict.fromkeys(('cad', 'as_nc'), why)}


def _divergence(
    job: _Job, pairs: Pairs, models: Models, nodes: graph.Circuit,
    draw: Callable[[np.random.Generator], graph.Circuit] | None, name: str
) -> dict[str, Any]:
  """`divergence.measure` in full precision, with `by_precision` beside it."""
  options, model = job.settings.attribution, job.model
  batches = pair_batches.to_score(pairs, options.batch, model.config)
  run = lambda params: eap_ig.score_pairs(
      model.config, params, batches, steps=options.steps)
  base, answered = eap_ig.keep_answered(run(model.params))
  kept = lambda make: eap_ig.PairScores(*(x[answered] for x in run(make())))
  facts = np.array([p.fact for p in pairs])[answered]
  quantized = {name: kept(make) for name, make in models.quantized.items()}
  suppression = {} if models.control is None else {
      'suppression': kept(lambda: models.control)}

  def nulls(precision):
    names = quantizer_rules.of_base(precision, list(quantized))
    return {'base_quantized': quantized[name] for name in names} | suppression

  found = {name: divergence.measure(
      base, kept(make), nulls(name), nodes, facts, random_nodes=draw,
      random_circuits=max(_LEAST_RANDOM, job.settings.circuit.random_circuits),
      **job.resampling())
           for name, make in models.after.items()}
  first, *rest = found
  if null := found[first]['nulls'].get('random_circuits'):
    null |= select.count_same(null['same'], null['draws'], name)
  return found[first] | {'by_precision': {name: found[name] for name in rest}}


def _random(job: _Job) -> Callable[[np.random.Generator], graph.Circuit] | None:
  """Draws random circuits of the circuit's shape; None if no other exists."""
  circuit, layers = job.found.circuit, job.layers
  if select.fills(circuit, layers):
    return None
  return lambda rng: select.matched_random(circuit, layers, rng)


def _cad(job: _Job, models: Models) -> dict[str, Any]:
  """CAD: on the circuit, with forget pairs."""
  return _divergence(
      job, job.pairs(prompt_pairs.forget_pairs), models, job.found.circuit,
      _random(job), 'CAD')


def _as_nc(job: _Job, models: Models) -> dict[str, Any]:
  """AS-NC: off the circuit, with retain pairs."""
  pairs, level = job.pairs(prompt_pairs.retain_pairs), (
      job.settings.attribution.level)
  outside = lambda circuit: divergence.outside(circuit, level)
  draw, nodes = _random(job), outside(job.found.circuit)
  if not any(nodes[kind].any() for kind in graph.KINDS):
    raise NothingOutside(
        f'the circuit holds every node of --attribution_level={level}, so no'
        ' node lies outside it')
  return _divergence(
      job, pairs, models, nodes, draw and (lambda rng: outside(draw(rng))),
      'AS-NC')
