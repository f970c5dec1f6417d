"""The unlearn loop: one jitted step, progress, and an honest stop.

The loop knows nothing of models or circuits. It is handed what it trains
(`theta`), the optax transformation, the loss, and the views of the weights
through which gradients are taken in turn (the quantizer in the loop).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import time
from typing import Any, Protocol

from absl import logging
import jax
import jax.numpy as jnp
import optax

from mansu_jax import transforms
from mansu_jax import types
from mansu_jax.runtime import progress


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
  """The weights as a step sees them.

  Attributes:
    frozen: `() -> pytree` of what is not trained, kept or made anew; of one
      structure in all views, so that one program serves them.
    quantize: `theta -> theta` as the view holds it, in buffers of its own; the
      gradient is taken there and applied to theta (straight through). None:
      theta itself.
  """

  frozen: Callable[[], types.PyTree]
  quantize: Callable[[types.PyTree], types.PyTree] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
  """What the loop is handed.

  Attributes:
    theta: trainable pytree, as it is before the first step.
    tx: the optax chain. Steps are those of `transforms.step`, and theta before
      the first one is handed to it as `origin`.
    loss: `(theta seen, frozen, base, batch) -> (scalar, metrics)`.
    views: step t uses number t mod n.
    base: the reference's frozen pytree (the full-precision view).
    codes_changed: `theta -> scalar`: how many weights the quantizer tells from
      the base's; None where there is no code grid. For the progress line.
  """

  theta: types.PyTree
  tx: optax.GradientTransformation
  loss: Callable[..., Any]
  views: Sequence[View]
  base: types.PyTree
  codes_changed: Callable[[types.PyTree], types.Array] | None = None


class Keeper(Protocol):
  """Keeps the loop's state, so that a run that was stopped can go on.

  The state after a step is all that later ones depend on: the carry (theta and
  the optimizer's state), the history, and the number of steps in it.
  """

  def restore(
      self, like: types.PyTree
  ) -> tuple[types.PyTree, list[dict[str, float]]] | None:
    """A carry of the shapes and types of `like` and its history, or None."""

  def after(
      self, step: int, carry: types.PyTree,
      history: list[dict[str, float]]) -> None:
    """Is called after every step, whose buffers the next one overwrites.

    It may raise, to end the run there.
    """


def make_step(problem: Problem, shardings: types.PyTree) -> Callable[..., Any]:
  """The jitted optimizer step of a problem.

  A program of this run: a cache that outlived it would keep what the functions
  close over (Fisher, code grids) in memory.

  Args:
    problem: of it, only `tx` and `loss` are read.
    shardings: shardings of the carry. What a step gives lies on the devices as
      what it takes, or the next one would compile again.

  Returns:
    `((theta, opt_state), seen, frozen, base, theta0, batch) -> ((theta,
    opt_state), metrics, moved, finite)`; it donates its first argument. `seen`
    is theta as the view holds it, or None: theta itself.
  """
  tx, loss = problem.tx, problem.loss

  @functools.partial(jax.jit, donate_argnames='carry', out_shardings=(
      shardings, None, None, None))
  def unlearn_step(carry, seen, frozen, base, theta0, batch):
    theta, opt_state = carry
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
        theta if seen is None else seen, frozen, base, batch)
    theta, opt_state = transforms.step(
        tx, grads, opt_state, theta, origin=theta0)
    finite = jnp.stack(
        [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(theta)]).all()
    return (theta, opt_state), metrics, _moved(theta, theta0), finite

  return unlearn_step


def _moved(theta: types.PyTree, theta0: types.PyTree) -> types.Array:
  """How many weights differ from those before the first step."""
  differs = jax.tree.map(lambda a, b: jnp.sum(a != b), theta, theta0)
  return sum(jax.tree.leaves(differs))


def _start(problem: Problem) -> tuple[types.PyTree, types.PyTree]:
  """Theta and optimizer state before the first step, and their shardings.

  In buffers of their own, since the step donates them: copied one by one, so
  that what only `init` holds is freed as its copy is made.
  """
  leaves, tree = jax.tree.flatten(
      (problem.theta, problem.tx.init(problem.theta)))
  for i, leaf in enumerate(leaves):
    leaves[i] = jnp.array(leaf, leaf.dtype)  # Typed as a step's and a file's.
  shardings = [leaf.sharding for leaf in leaves]
  leaves = jax.device_put(leaves, shardings)
  return jax.tree.unflatten(tree, leaves), jax.tree.unflatten(tree, shardings)


def _put(
    found: types.PyTree, carry: types.PyTree, shardings: types.PyTree
) -> types.PyTree:
  """A state that was kept in the place of a carry, which is given up."""
  def put(host, leaf, sharding):
    leaf.delete()
    return jnp.array(jax.device_put(host, sharding))  # Never the host's memory.

  return jax.tree.map(put, found, carry, shardings)


def run(
    problem: Problem, batches: Callable[[int], types.PyTree], *, steps: int,
    total_weights: int, max_retain_kl: float,
    visit: Callable[[int, types.PyTree], bool | None] | None = None,
    keep: Keeper | None = None, log_every: int = 10
) -> tuple[types.PyTree, list[dict[str, float]]]:
  """Runs the loop.

  Args:
    problem: see `Problem`.
    batches: step -> batch; must not depend on earlier calls.
    steps: optimizer steps.
    total_weights: all weights of the model, for the share that moved.
    max_retain_kl: stop when the retain KL exceeds this, in nats a token.
    visit: called as `visit(step, theta)` after every logged step, with weights
      that the next step overwrites; where it returns True, the loop ends.
    keep: where the state is kept, and gone on from, to the same end; None: not
      at all.
    log_every: steps between progress lines.

  Returns:
    The final theta and the history, one dict a step.

  Raises:
    ValueError: the loss or a weight is not finite, or retain has collapsed;
      the message says at which step and what to change. Others as of `keep`.
  """
  (carry, shardings), history = _start(problem), []
  found = None if keep is None else keep.restore(carry)
  if found is not None:
    carry, history = _put(found[0], carry, shardings), list(found[1])
  del found
  unlearn_step = make_step(problem, shardings)

  first, start = len(history), None
  for step in progress.track(
      range(first, steps), 'unlearn', total=steps, start=first):
    view = problem.views[step % len(problem.views)]
    seen = None if view.quantize is None else view.quantize(carry[0])
    carry, metrics, moved, finite = unlearn_step(
        carry, seen, view.frozen(), problem.base, problem.theta,
        batches(step))
    row = {k: float(v) for k, v in metrics._asdict().items()}
    row |= {'step': step + 1, 'moved': float(moved) / total_weights}
    history.append(row)
    _check(row, bool(finite), max_retain_kl)
    start = start or time.monotonic()  # The first step compiles.
    if (step + 1) % log_every == 0 or step + 1 == steps:
      seconds = (time.monotonic() - start) / max(step - first, 1)
      shares = f'moved {row["moved"]:.3%}'
      if problem.codes_changed is not None:
        changed = float(problem.codes_changed(carry[0]))
        shares += f'  codes changed {changed / total_weights:.3%}'
      _log(row, shares, steps, seconds)
      if visit is not None and visit(step + 1, carry[0]):
        break
    if keep is not None:
      keep.after(step + 1, carry, history)
  return carry[0], history


def _check(row: dict[str, float], finite: bool, max_retain_kl: float) -> None:
  step = int(row['step'])
  if not finite or row['loss'] != row['loss'] or abs(row['loss']) == float(
      'inf'):
    raise ValueError(
        f'Step {step}: the loss is {row["loss"]} and the weights are'
        f' {"finite" if finite else "not finite"}. Lower'
        ' --unlearn_learning_rate, or raise --unlearn_warmup.')
  if row['retain_kl'] > max_retain_kl:
    raise ValueError(
        f'Step {step}: the retain KL is {row["retain_kl"]:.3f} nats a token,'
        f' above --unlearn_max_retain_kl={max_retain_kl}: what should be kept is being'
        ' lost. Lower --unlearn_learning_rate or --circuit_budget, or raise'
        ' --unlearn_kl_weight.')


def _log(
    row: dict[str, float], shares: str, steps: int, seconds: float) -> None:
  step = int(row['step'])
  logging.info(
      'step %d/%d  forget %.3f (nll %.2f)  retain kl %.4f nll %.3f  text kl'
      ' %.4f  swapped kl %.4f  %s  eta %.0fs', step, steps, row['forget'],
      row['forget_nll'], row['retain_kl'], row['retain_nll'], row['text_kl'],
      row['crossed_kl'], shares, seconds * (steps - step))
