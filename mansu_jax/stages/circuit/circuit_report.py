"""The record's report on a circuit, of nodes or of edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from mansu_jax.circuits import curve
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import select
from mansu_jax.config import circuit as circuit_config
from mansu_jax.runtime import progress

_Circuit = TypeVar('_Circuit')


def compare(
    measure: faithfulness.Faithfulness[_Circuit], circuit: _Circuit, *,
    empty: _Circuit, randoms: Sequence[_Circuit],
    same: Callable[[_Circuit, _Circuit], bool]) -> dict[str, Any]:
  """Faithfulness of a circuit, of an empty one, and of random ones.

  Args:
    measure: measures circuits.
    circuit: the circuit.
    empty: a circuit without nodes or edges.
    randoms: random circuits.
    same: whether two circuits are equal.
  """
  values = [measure(one)
            for one in progress.track(randoms, 'random circuits')]
  return {
      'faithfulness': measure(circuit), 'faithfulness_of_none': measure(empty),
      'random': {
          'mean': float(np.mean(values)), 'max': float(np.max(values)),
          'circuits': len(randoms)} | select.count_same(
              sum(same(circuit, one) for one in randoms), len(randoms),
              'faithfulness')}


def smallest_prefix(
    options: circuit_config.CircuitConfig, prefixes: curve.Prefixes[_Circuit],
    measure: faithfulness.Faithfulness[_Circuit],
    points: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
  """The smallest prefix of a ranking that reaches `--circuit_faithfulness`.

  Args:
    options: the target.
    prefixes: the circuits by size.
    measure: measures circuits.
    points: as for `curve.smallest`.
  """
  size = curve.smallest(
      lambda size: measure(prefixes.first(size)), options.faithfulness,
      prefixes.count, points)
  return {'smallest_faithful_prefix': {
      'target': options.faithfulness, prefixes.unit: size,
      'candidates': prefixes.count}}


def trace(
    options: circuit_config.CircuitConfig, prefixes: curve.Prefixes[_Circuit],
    measure: faithfulness.Faithfulness[_Circuit]) -> dict[str, Any]:
  """The curve of faithfulness by size, as `curve.trace` returns it."""
  return curve.trace(prefixes, measure, options.curve_circuits)
