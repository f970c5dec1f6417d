"""The options of training."""

from __future__ import annotations

import dataclasses

from mansu_jax.circuits import graph
from mansu_jax.config import methods
from mansu_jax.config import run as run_config
from mansu_jax.data import splits as splits_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The parts of a run's configuration that this stage reads.

  Attributes:
    data: Chat form, and length of text windows.
    fisher: Sequences, labels and chunk size.
    edit: Projection, floor and landing.
    unlearn: Objective, batches and optimizer.
    quant_schemes: Quantizers of the run.
    export_dtype: Storage dtype of the exported weights.
    export_shard_gb: Most GB of weights in a file.
    seed: Seed of pools, batches and drawn labels.
    all_weights: Whether every weight is trained, as in baselines, or the
      circuit's only.
    closed_form: Name of the method if it is a closed form, which takes no
      steps; '' otherwise.
  """

  data: run_config.DataConfig
  fisher: run_config.FisherConfig
  edit: run_config.EditConfig
  unlearn: run_config.UnlearnConfig
  quant_schemes: tuple[str, ...]
  export_dtype: str
  export_shard_gb: float
  seed: int
  all_weights: bool
  closed_form: str = ''

  @classmethod
  def from_run(
      cls, config: run_config.RunConfig, splits: splits_lib.Splits,
      circuit: graph.Circuit) -> Settings:
    """The settings of a run on these questions.

    Raises:
      ValueError: the forget loss reads a layer that training does not reach.
    """
    everything = config.circuit.selection == 'all'
    num_layers = len(circuit.neurons)
    unlearn, form = config.unlearn, ''
    if config.method in methods.CLOSED_FORMS:
      form, unlearn = config.method, dataclasses.replace(unlearn, steps=1)
    first, end = (config.unlearn.trained_layers(num_layers) if everything
                  else circuit.span)
    return cls(
        data=config.data, fisher=config.fisher, edit=config.edit,
        unlearn=unlearn.for_forget_set(
            len(splits.forget_train)).for_layers(first, end, num_layers),
        quant_schemes=config.quant_schemes,
        export_dtype=config.export_dtype,
        export_shard_gb=config.export_shard_gb, seed=config.seed,
        all_weights=everything, closed_form=form)
