"""What a program computes and reads, counted from its jaxpr.

A compiler's own account counts the body of a loop once, and all that is heavy
here stands in loops (over layers, path steps, examples). So matrix products are
counted from the program before it is compiled, loops as often as they run.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

from jax import lax
from jax.extend import core

# An operand that is moved, cut or cast between memory and a product is read
# in the dtype that it has in memory.
_MOVES = frozenset((
    'broadcast_in_dim', 'convert_element_type', 'copy', 'dynamic_slice',
    'gather', 'optimization_barrier', 'reshape', 'rev', 'sharding_constraint',
    'slice', 'squeeze', 'transpose'))
# Of products in float32, how far they ask for more than bfloat16's digits.
_EXACT = {lax.Precision.HIGH: 0.5, lax.Precision.HIGHEST: 1.0}


class Cost(NamedTuple):
  """Of one call, on all devices together."""

  flops: float = 0.0  # of products; a multiplication and an addition are two
  exact: float = 0.0  # those of them in float32 proper (half of HIGH's)
  weights: float = 0.0  # bytes of products' operands that are arguments
  activations: float = 0.0  # bytes of their other operands and of results

  def __add__(self, other: Cost) -> Cost:
    return Cost(*(a + b for a, b in zip(self, other)))

  def times(self, count: float) -> Cost:
    """Of so many calls."""
    return Cost(*(count * x for x in self))


def count(jaxpr: Any) -> Cost:
  """The cost of a closed jaxpr, as `jax.jit(f).trace(*args).jaxpr` is.

  Loops of unknown length count once, branches as the one that computes most.
  """
  return _count(jaxpr.jaxpr, [v.aval.dtype.itemsize if _is_array(v) else None
                              for v in jaxpr.jaxpr.invars])[0]


def _is_array(var: Any) -> bool:
  return hasattr(var.aval, 'dtype') and var.aval.ndim > 1


def _count(
    jaxpr: Any, stored: Sequence[int | None]
) -> tuple[Cost, list[int | None]]:
  """The cost, and which results are arguments that were only moved.

  Args:
    jaxpr: open.
    stored: for each argument the bytes of an entry where it lies in memory;
      None: it is computed.
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
  """The cost of the programs that an equation holds."""
  name, params = eqn.primitive.name, eqn.params
  nothing = [None] * len(eqn.outvars)
  if name == 'scan':
    # What is scanned over is an argument still, in slices.
    cost, made = _count(params['jaxpr'].jaxpr, given)
    # A carry that comes back unchanged is one; results are stacked anew.
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
