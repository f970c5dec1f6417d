"""Operations and bytes of a program, counted from its jaxpr.

XLA's cost analysis counts a loop's body once, and the heavy work here is in
loops (over layers, path steps, examples). So matrix products are counted in the
jaxpr, with each loop body times its number of iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from jax import lax
from jax.extend import core

# Primitives through which a product reads an operand from memory, in the dtype
# in which it is stored.
_MOVES = frozenset((
    'broadcast_in_dim', 'convert_element_type', 'copy', 'dynamic_slice',
    'gather', 'optimization_barrier', 'reshape', 'rev', 'sharding_constraint',
    'slice', 'squeeze', 'transpose'))
# Share of a float32 product's passes beyond bfloat16, by precision.
_EXACT = {lax.Precision.HIGH: 0.5, lax.Precision.HIGHEST: 1.0}


class Cost(NamedTuple):
  """The cost of one call, summed over all devices."""

  flops: float = 0.0  # of matrix products; a multiply-add counts as two
  exact: float = 0.0  # flops in full float32 precision (half of HIGH's)
  weights: float = 0.0  # bytes of the products' operands that are arguments
  activations: float = 0.0  # bytes of the other operands and of results

  def __add__(self, other: Cost) -> Cost:
    return Cost(*(a + b for a, b in zip(self, other)))

  def times(self, count: float) -> Cost:
    """The cost of `count` calls."""
    return Cost(*(count * x for x in self))


def count(jaxpr: Any) -> Cost:
  """The cost of a closed jaxpr, such as `jax.jit(f).trace(*args).jaxpr`.

  A `while` loop counts once; a `cond` counts as its most expensive branch.
  """
  return _count(jaxpr.jaxpr, [v.aval.dtype.itemsize if _is_array(v) else None
                              for v in jaxpr.jaxpr.invars])[0]


def _is_array(var: Any) -> bool:
  return hasattr(var.aval, 'dtype') and var.aval.ndim > 1


def _count(
    jaxpr: Any, stored: Sequence[int | None]
) -> tuple[Cost, list[int | None]]:
  """The cost, and for each result the itemsize if it is a moved argument.

  Args:
    jaxpr: an open jaxpr.
    stored: itemsize of each argument that is read from memory; None for
      computed ones.
  """
  known: dict[Any, int | None] = dict(zip(jaxpr.invars, stored))
  for var in jaxpr.constvars:
    known[var] = var.aval.dtype.itemsize if _is_array(var) else None
  get = lambda v: None if isinstance(v, core.Literal) else known.get(v)
  total = Cost()
  for eqn in jaxpr.eqns:
    given = [get(v) for v in eqn.invars]
    made: list[int | None] = [None] * len(eqn.outvars)
    if eqn.primitive.name == 'dot_general':
      total += _product(eqn, given)
    elif eqn.primitive.name in _MOVES:
      made = given[:len(made)]
    else:
      cost, made = _inner(eqn, given)
      total += cost
    known.update(zip(eqn.outvars, made))
  return total, [get(v) for v in jaxpr.outvars]


def _inner(eqn, given):
  """The cost of an equation's inner jaxprs."""
  name, params = eqn.primitive.name, eqn.params
  nothing = [None] * len(eqn.outvars)
  if name == 'scan':
    # Slices of a scanned argument are still read from memory.
    cost, made = _count(params['jaxpr'].jaxpr, given)
    # So is an unchanged carry. Stacked results are computed.
    carried = made[:params['num_carry']]
    return cost.times(params['length']), carried + nothing[len(carried):]
  if name == 'while':
    consts = params['body_nconsts']
    start = params['cond_nconsts']
    return _count(params['body_jaxpr'].jaxpr,
                  given[start:start + consts] + nothing)[0], nothing
  if name == 'cond':
    branches = [_count(b.jaxpr, given[1:])[0] for b in params['branches']]
    return max(branches, key=lambda cost: cost.flops), nothing
  for inner in (params.get('jaxpr'), params.get('call_jaxpr'),
                params.get('fun_jaxpr')):
    if inner is not None:
      inner = getattr(inner, 'jaxpr', inner)
      if len(inner.invars) == len(given):
        return _count(inner, given)
  return Cost(), nothing


def _product(eqn, given) -> Cost:
  left, right = (v.aval for v in eqn.invars)
  out = eqn.outvars[0].aval
  (contracted, _), _ = eqn.params['dimension_numbers']
  flops = 2.0 * out.size * math.prod(left.shape[i] for i in contracted)
  precision = eqn.params['precision']
  if isinstance(precision, tuple):
    precision = precision[0]
  exact = _EXACT.get(precision, 0.0) if left.dtype.itemsize == 4 else 0.0
  weights = sum(aval.size * stored for aval, stored in zip((left, right), given)
                if stored is not None)
  activations = sum(
      aval.size * aval.dtype.itemsize
      for aval, stored in zip((left, right), given) if stored is None)
  return Cost(flops, exact * flops, weights,
              activations + out.size * out.dtype.itemsize)
