"""Relearning records of several models that forgot the same facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import json
import pathlib
from typing import Any, NamedTuple

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.deployment import relearning_attack
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import files
from mansu_jax.stages import checks
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.judge import first_token_questions
from mansu_jax.stages.judge import readability


class Target(NamedTuple):
  """A model to attack.

  Attributes:
    name: Name in the record and, with `_` for `:` and `+`, in the file name.
    load: Function that returns the unlearned params.
    cad: Maps the params to CAD by name of a circuit, for the record.
  """

  name: str
  load: Callable[[], types.Params]
  cad: Callable[[types.Params], dict[str, Any]] = lambda params: {}


def path_of(folder: pathlib.Path, name: str, seed: int) -> pathlib.Path:
  """Path of the record of one model and seed."""
  name = name.replace(':', '_').replace('+', '_')
  return folder / 'relearning' / f'{name}_s{seed}.json'


class Session:
  """Attacks models of one run; loads data and base model once.

  Attributes:
    config: Config of the run.
    inputs: Data of the run.
    model: Base model.
    attack: The attack.
  """

  def __init__(self, config: run_config.RunConfig):
    """Reads the data and loads the base model.

    Args:
      config: Config of the run.

    Raises:
      ValueError: See `checks.read`, `loading.load` and `RelearningAttack`.
    """
    self.config = config
    self.inputs = checks.read(config)
    self.model = loading.load(
        config.model, hf_io.EXPORT_DTYPES[config.export_dtype],
        ignore_fields=config.model_ignore_fields)
    self.attack = relearning_attack.RelearningAttack(
        config.eval, config.data, self.inputs, self.model, seed=config.seed)

  def _reader(self, params: types.Params) -> readability.Reader:
    """Reads the base and another model in full precision."""
    config = self.config
    questions = first_token_questions.choose(
        self.inputs, self.model.tokenizer, limit=config.eval.lens_questions,
        seed=config.seed, chat=config.data.chat)
    return readability.Reader(
        questions, self.model, params, {'fp': lambda params: params},
        resamples=config.eval.bootstrap, seed=config.seed)

  def suppress_as_many(self, params: types.Params) -> types.Params:
    """Makes the output-suppression control of an unlearned model.

    Args:
      params: The unlearned model.

    Returns:
      A model that hides as many answers and erases none; see
      `erasure.suppression`.
    """
    pairs = prompt_pairs.forget_pairs(
        settings_lib.Settings.from_run(self.config), self.inputs.splits,
        self.model.tokenizer)
    return self._reader(params).control(
        pairs[:self.config.eval.cad_pairs]).params

  def record(self, target: Target, learning_rate: float) -> dict[str, Any]:
    """Measures CAD and readability of a model, then attacks it.

    Args:
      target: The model.
      learning_rate: Learning rate of the attack.

    Returns:
      A JSON-able record: `arm` (the name), `learning_rate`, `cad`,
      `readability` and `relearning`.

    Raises:
      first_token_questions.NothingToRead: The run has too few questions.
    """
    params = target.load()
    return {
        'arm': target.name, 'learning_rate': learning_rate,
        'cad': target.cad(params),
        'readability': self._reader(params).measure(None),
        'relearning': self.attack(params, learning_rate=learning_rate)}

  def write_records(
      self, targets: Iterable[Target], folder: pathlib.Path, *,
      learning_rate: float = relearning_attack.LEARNING_RATE
  ) -> Iterator[dict[str, Any]]:
    """Attacks models and writes one record each; skips existing records.

    Args:
      targets: Models to attack.
      folder: Folder of the records; they go in its subfolder `relearning`.
      learning_rate: Learning rate of the attack.

    Yields:
      Each new record after it is written.

    Raises:
      ValueError: An existing record has another learning rate; or see `record`.
    """
    (folder / 'relearning').mkdir(parents=True, exist_ok=True)
    for target in targets:
      path = path_of(folder, target.name, self.config.seed)
      if path.exists():
        _check_learning_rate(path, learning_rate)
        continue
      record = self.record(target, learning_rate)
      files.write_json(path, record)
      yield record


def _check_learning_rate(path: pathlib.Path, wanted: float) -> None:
  found = json.loads(path.read_text())['learning_rate']
  if found != wanted:
    raise ValueError(
        f'{path} is a record with learning rate {found}; wanted {wanted}. Give'
        ' another output folder, or delete the record.')


def targets_of(
    paths: Mapping[str, str], session: Session, *, controls: bool
) -> Iterator[Target]:
  """Targets of exported models.

  Args:
    paths: Hugging Face directories by name.
    session: Session that attacks them.
    controls: Whether a control that hides as many answers, NAME_control,
      follows each model.

  Yields:
    The targets. They load weights when they are attacked.
  """
  for name, path in paths.items():
    load = lambda path=path: loading.load(path).params
    yield Target(name, load)
    if controls:
      yield Target(f'{name}_control',
                   lambda load=load: session.suppress_as_many(load()))


def summary_line(record: dict[str, Any]) -> str:
  """Name, and accuracy on facts that were not taught by step."""
  return f'{record["arm"]} ' + str(
      [(found['step'], round(found['not_taught'], 3))
       for found in record['relearning']])
