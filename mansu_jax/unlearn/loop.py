"""The unlearn loop: one jitted step, progress, and early stops.

The loop knows no models or circuits. It gets the trained weights (`theta`), the
optax transformation, the loss, and the views of the weights at which it takes
gradients in turn (the quantizer in the loop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import time
from typing import Any, Protocol

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import transforms
from mansu_jax import types
from mansu_jax.runtime import progress
from mansu_jax.unlearn import gradients
from mansu_jax.unlearn import rates as rates_lib


_RECENT = 10  # Steps whose mean retain KL has a limit: batches differ.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
  """The weights at which a step takes its gradient.

  Attributes:
    frozen: `() -> pytree` of the weights that are not trained. All views have
      the same structure, so that one program serves them.
    quantize: `theta -> quantized theta`, in new buffers. The gradient is taken
      there and applied to theta (straight-through estimator). None takes it at
      theta.
    refer: `(frozen, batch) -> batch` with the view's own references. None keeps
      those of the batch.
  """

  frozen: Callable[[], types.PyTree]
  quantize: Callable[[types.PyTree], types.PyTree] | None = None
  refer: Callable[[types.PyTree, types.PyTree], types.PyTree] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
  """Everything that the loop optimizes with.

  Attributes:
    theta: trained pytree before the first step. A leaf keeps its dtype: a step
      is computed in float32 and its sum rounded to the nearest value.
    tx: the optax chain, applied by `transforms.step` with `theta` as `origin`.
    loss: `(theta of the view, frozen, base, batch) -> (scalar, metrics)`.
    views: step t uses view t mod n.
    base: the frozen pytree of the full-precision view, for references.
    rates: learning rate of each step, which `tx` holds in its state as
      `learning_rate` (`optax.inject_hyperparams`); None: `tx` has its own.
    codes_changed: `theta -> number of weights with another code`, for the log;
      None without a code grid.
    orthogonal: whether `loss` returns a pair, forget and kept, in place of the
      scalar. A step then follows the gradient of kept, and of that of forget
      what is orthogonal to it in each leaf.
    movable: bools that broadcast to theta; `tx` keeps the others where they
      are. They do not count as directions of an orthogonal gradient. None: all
      may move.
    sharpness: length of a step along the gradient, at whose end the gradient is
      taken that the update follows (SAM). 0: where the weights are.
  """

  theta: types.PyTree
  tx: optax.GradientTransformation
  loss: Callable[..., Any]
  views: Sequence[View]
  base: types.PyTree
  rates: rates_lib.Rates | None = None
  codes_changed: Callable[[types.PyTree], types.Array] | None = None
  orthogonal: bool = False
  movable: types.PyTree | None = None
  sharpness: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
  """Looks at how much is forgotten, and ends the loop.

  It looks at the current weights alone, so a resumed run ends at the same step.
  The history gets the column `probe`, NaN at steps without a look.

  Attributes:
    measure: `theta -> value`, which falls as facts are forgotten.
    every: steps between looks; it also looks after the last step.
    at_most: the loop ends when the value is not above this; None: only the
      plateau of `Problem.rates` ends it.
    chance: value of a model that has forgotten, for the warning that training
      is not on course.
  """

  measure: Callable[[types.PyTree], float]
  every: int
  at_most: float | None = None
  chance: float = 0.0


class DivergedError(ValueError):
  """Training went to where no later step leads back."""


class Keeper(Protocol):
  """Saves the loop's state, so that a stopped run can resume.

  Later steps depend only on the carry (theta and optimizer state), the history,
  and the number of steps.
  """

  def restore(
      self, like: types.PyTree
  ) -> tuple[types.PyTree, list[dict[str, float]]] | None:
    """The saved carry, shaped and typed as `like`, and history; or None."""

  def after(
      self, step: int, carry: types.PyTree,
      history: list[dict[str, float]]) -> None:
    """Called after every step; the next step overwrites the carry's buffers.

    It may raise to stop the run.
    """


def make_step(problem: Problem, shardings: types.PyTree) -> Callable[..., Any]:
  """The jitted optimizer step of a problem.

  It is compiled once a run: a longer-lived cache would keep the arrays that
  `tx` and `loss` close over (Fisher, code grids) in memory.

  Args:
    problem: the step reads `tx`, `loss`, and what says how its gradient is
      taken: `orthogonal`, `movable` and `sharpness`.
    shardings: shardings of the carry. The step returns it with the same ones;
      otherwise the next step would compile again.

  Returns:
    `((theta, opt_state), seen, frozen, base, theta0, batch, rate) -> ((theta,
    opt_state), metrics, moved, finite)`; it donates its first argument. `seen`
    is the view's quantized theta, or None for theta itself. `rate` is the
    learning rate, or None if `tx` has its own.
  """
  tx = problem.tx
  gradient = gradients.make(
      problem.loss, orthogonal=problem.orthogonal, movable=problem.movable,
      sharpness=problem.sharpness)

  @functools.partial(jax.jit, donate_argnames='carry', out_shardings=(
      shardings, None, None, None))
  def unlearn_step(carry, seen, frozen, base, theta0, batch, rate=None):
    stored, opt_state = carry
    if rate is not None:
      opt_state = optax.tree.set(opt_state, learning_rate=rate)
    theta = float32(stored)
    grads, metrics = gradient(
        theta if seen is None else seen, frozen, base, batch)
    theta, opt_state = transforms.step(
        tx, grads, opt_state, theta, origin=theta0)
    theta = jax.tree.map(_rounded, theta, stored)
    finite = jnp.stack(
        [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(theta)]).all()
    return (theta, opt_state), metrics, _moved(theta, theta0), finite

  return unlearn_step


def float32(theta: types.PyTree) -> types.PyTree:
  """Theta with narrower float leaves widened, in which a step is computed."""
  return jax.tree.map(
      lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), theta)


def _rounded(x: types.Array, stored: types.Array) -> types.Array:
  """Rounds x to the nearest value of the dtype in which it is stored."""
  if x.dtype == stored.dtype:
    return x
  kind = jnp.finfo(stored.dtype)
  # XLA may drop a cast there and back, but never `reduce_precision`.
  x = jax.lax.reduce_precision(x, kind.nexp, kind.nmant)
  return x.astype(stored.dtype)


def _moved(theta: types.PyTree, theta0: types.PyTree) -> types.Array:
  """Number of weights that differ from theta before the first step."""
  differs = jax.tree.map(lambda a, b: jnp.sum(a != b), theta, theta0)
  return sum(jax.tree.leaves(differs))


def _start(problem: Problem) -> tuple[types.PyTree, types.PyTree]:
  """Theta and optimizer state before the first step, and their shardings.

  They are copies, since the step donates them. Leaves are copied one by one, so
  that each original is freed before the next copy.
  """
  leaves, tree = jax.tree.flatten(
      (problem.theta, problem.tx.init(float32(problem.theta))))
  for i, leaf in enumerate(leaves):
    leaves[i] = jnp.array(leaf, leaf.dtype)  # Not weakly typed.
  shardings = [leaf.sharding for leaf in leaves]
  leaves = jax.device_put(leaves, shardings)
  return jax.tree.unflatten(tree, leaves), jax.tree.unflatten(tree, shardings)


def _put(
    found: types.PyTree, carry: types.PyTree, shardings: types.PyTree
) -> types.PyTree:
  """Puts a restored carry on the devices in place of the initial one."""
  def put(host, leaf, sharding):
    leaf.delete()
    return jnp.array(jax.device_put(host, sharding))  # A copy, to be donated.

  return jax.tree.map(put, found, carry, shardings)


def run(
    problem: Problem, batches: Callable[[int], types.PyTree], *, steps: int,
    total_weights: int, max_retain_kl: float,
    visit: Callable[[int, types.PyTree], bool | None] | None = None,
    probe: Probe | None = None, keep: Keeper | None = None, log_every: int = 10
) -> tuple[types.PyTree, list[dict[str, float]]]:
  """Runs the loop.

  Args:
    problem: see `Problem`.
    batches: step -> batch, independent of earlier calls.
    steps: optimizer steps.
    total_weights: number of weights of the whole model, for the moved share.
    max_retain_kl: limit of the mean retain KL of ten steps, in nats a token.
    visit: called as `visit(step, theta)` after every logged step; the next step
      overwrites theta. Returning True ends the loop.
    probe: looks at what is forgotten; None runs all steps.
    keep: saves the state and resumes from it; None saves nothing.
    log_every: steps between log lines.

  Returns:
    The final theta and the history, one dict a step.

  Raises:
    DivergedError: the loss or a weight is not finite, or the retain KL exceeds
      its limit. Also what `keep` raises.
  """
  (carry, shardings), history = _start(problem), []
  found = None if keep is None else keep.restore(carry)
  if found is not None:
    carry, history = _put(found[0], carry, shardings), list(found[1])
  del found
  unlearn_step = make_step(problem, shardings)

  first, start = len(history), None
  before = [] if probe is None else [(0, float(probe.measure(problem.theta)))]
  for step in progress.track(
      range(first, steps), 'unlearn', total=steps, start=first):
    rate, last = _rate(problem.rates, step, steps, before + _looks(history))
    if step >= last:
      break
    view = problem.views[step % len(problem.views)]
    seen = None if view.quantize is None else view.quantize(carry[0])
    frozen, batch = view.frozen(), batches(step)
    if view.refer is not None:
      batch = view.refer(frozen, batch)
    carry, metrics, moved, finite = unlearn_step(
        carry, seen, frozen, problem.base, problem.theta, batch, rate)
    del frozen
    row = {k: float(v) for k, v in metrics._asdict().items()}
    row |= {'step': step + 1, 'moved': float(moved) / total_weights}
    if probe is not None:
      row['probe'] = float('nan')
      if (step + 1) % probe.every == 0 or step + 1 == last:
        row['probe'] = float(probe.measure(carry[0]))
    history.append(row)
    _check(history, bool(finite), max_retain_kl)
    start = start or time.monotonic()  # The first step compiles.
    looked = probe is not None and not math.isnan(row['probe'])
    if looked:
      _warn_off_course(probe, before + _looks(history), last)
    if (step + 1) % log_every == 0 or step + 1 == last:
      seconds = (time.monotonic() - start) / max(step - first, 1)
      shares = f'moved {row["moved"]:.3%}'
      if problem.codes_changed is not None:
        changed = float(problem.codes_changed(carry[0]))
        shares += f'  codes changed {changed / total_weights:.3%}'
      if probe is not None and _looks(history):
        shares += f'  probe {_looks(history)[-1][1]:.3f}'
      _log(row, shares, last, seconds)
      if visit is not None and visit(step + 1, carry[0]):
        break
    if looked and probe.at_most is not None and row['probe'] <= probe.at_most:
      break
    if keep is not None:
      keep.after(step + 1, carry, history)
  if probe is not None and probe.at_most is not None and (
      history[-1]['probe'] > probe.at_most):
    logging.warning(
        'All %d steps are done, but the probe is %.3f, above'
        ' --unlearn_stop_forget=%g.', len(history), history[-1]['probe'],
        probe.at_most)
  return carry[0], history


def _looks(history: Sequence[dict[str, float]]) -> list[tuple[int, float]]:
  """`(steps done, value)` of each look of the probe."""
  return [(int(row['step']), row['probe']) for row in history
          if not math.isnan(row.get('probe', math.nan))]


def _rate(
    rates: rates_lib.Rates | None, step: int, steps: int,
    looks: Sequence[tuple[int, float]]) -> tuple[np.float32 | None, int]:
  """The learning rate of a step, and the number of steps of the run so far."""
  if rates is None:
    return None, steps
  begin = rates.decays_from(looks)
  if begin == step:
    logging.info(
        'The probe has not fallen by %g for %d steps: the learning rate decays,'
        ' and training ends after step %d.', rates.least, rates.patience,
        rates.end(begin))
  return np.float32(rates(step, begin)), rates.end(begin)


def _warn_off_course(
    probe: Probe, looks: Sequence[tuple[int, float]], steps: int) -> None:
  """Warns at each quarter of the steps if the probe is not half-way."""
  (_, before), (previous, _), (done, value) = looks[0], *looks[-2:]
  crosses = 4 * done // steps > 4 * previous // steps
  if crosses and value - probe.chance > 0.5 * (before - probe.chance):
    logging.warning(
        'Forgetting is not on course: after %d of at most %d steps the probe is'
        ' %.3f, before them %.3f, and guessing would give %.2f. Raise'
        ' --unlearn_forget_weight, --unlearn_learning_rate or'
        ' --circuit_budget.', done, steps, value, before, probe.chance)


def _check(
    history: Sequence[dict[str, float]], finite: bool, max_retain_kl: float
) -> None:
  row, recent = history[-1], history[-_RECENT:]
  step = int(row['step'])
  if not finite or row['loss'] != row['loss'] or abs(row['loss']) == float(
      'inf'):
    raise DivergedError(
        f'Step {step}: the loss is {row["loss"]} and the weights are'
        f' {"finite" if finite else "not finite"}. Lower'
        ' --unlearn_learning_rate, or raise --unlearn_warmup.')
  retain_kl = sum(r['retain_kl'] for r in recent) / len(recent)
  if retain_kl > max_retain_kl:
    raise DivergedError(
        f'Step {step}: the retain KL is {retain_kl:.3f} nats a token, the mean'
        f' over the last {len(recent)} steps, above --unlearn_max_retain_kl='
        f'{max_retain_kl}: the model is losing retained knowledge. Lower'
        ' --unlearn_learning_rate or --circuit_budget, or raise'
        ' --unlearn_kl_weight.')


def _log(
    row: dict[str, float], shares: str, steps: int, seconds: float) -> None:
  step = int(row['step'])
  logging.info(
      'step %d/%d  forget %.3f (nll %.2f)  retain kl %.4f nll %.3f  text kl'
      ' %.4f  swapped kl %.4f  %s  eta %.0fs', step, steps, row['forget'],
      row['forget_nll'], row['retain_kl'], row['retain_nll'], row['text_kl'],
      row['swapped_kl'], shares, seconds * (steps - step))
