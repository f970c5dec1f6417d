"""The options of attribution and of the selection of a circuit."""

from __future__ import annotations

import dataclasses

from mansu_jax.config import attribution as attribution_config
from mansu_jax.config import circuit as circuit_config
from mansu_jax.config import run as run_config
from mansu_jax.stages.prepare import answer_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The parts of a run's configuration that this stage reads.

  Attributes:
    attribution: pairs, path steps and level.
    circuit: selection, budget, random circuits and resamples.
    seed: seed of pairs, random circuits and resamples.
    chat: whether prompts take the tokenizer's chat form.
    bootstrap: number of resamples behind an interval.
    for_edit: whether the circuit's weights will be edited. If not (mode
      `attribute`), the circuit itself is the result: key/value heads are no
      candidates, a circuit of edges is not converted to weights, and the curve
      of faithfulness and other phrasings are measured.
    layers: the mover layer, if the run depends on it; None otherwise.
  """

  attribution: attribution_config.AttributionConfig
  circuit: circuit_config.CircuitConfig
  seed: int = 0
  chat: bool = False
  bootstrap: int = 2000
  for_edit: bool = True
  layers: answer_layers.Found | None = None

  def with_layers(
      self, found: answer_layers.Found, num_layers: int) -> Settings:
    """The settings with the circuit's layers, where they were left open."""
    return dataclasses.replace(
        self, layers=found, circuit=answer_layers.resolve(
            self.circuit, found, num_layers))

  @classmethod
  def from_run(cls, config: run_config.RunConfig) -> Settings:
    """The settings of a run."""
    return cls(
        attribution=config.attribution, circuit=config.circuit,
        seed=config.seed, chat=config.data.chat,
        bootstrap=config.eval.bootstrap, for_edit=config.mode != 'attribute')
