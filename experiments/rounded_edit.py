"""Which part of a diffuse edit does 4-bit rounding carry?

    python experiments/rounded_edit.py RUN

RUN is a finished workdir, such as one of quickstart_graddiff.flags. The edit is
d = theta_u - theta_0. After quantization the edit is q = Q(theta_u) -
Q(theta_0): a jump by a whole code for weights that crossed a boundary, and a
drift of all weights in blocks whose scale, the largest weight, moved. The
script prints how much of d is in q, and the accuracy by split of theta_0,
theta_u, Q(theta_0), Q(theta_u) and, in full precision, of

    theta_0 + d in leaves that are not quantized (embedding, norms)
    theta_0 + d in quantized leaves
    theta_0 + q in quantized leaves
    theta_0 + q where the code changed: the jumps
    theta_0 + q where it did not: the drift
    theta_0 + q at other weights: shuffled within each leaf

If rounding carries the edit, q forgets as much as d, and shuffled q does not;
jumps and drift then show which part carries it. If the embedding carries the
edit, the first row forgets.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import pathlib

import jax
import numpy as np

from mansu_jax import quant
from mansu_jax import types
from mansu_jax.config import flags as flags_lib
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading
from mansu_jax.quant import survival
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.prepare import inputs as inputs_lib

_SPLITS = ('forget', 'forget_far', 'retain', 'retain_heldout')


def _shuffled(leaf: types.Array, rng: np.random.Generator) -> np.ndarray:
  """The entries of a leaf in random order."""
  return rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape)


def levels(
    params: types.Params, scheme: str, layout: types.PyTree) -> types.PyTree:
  """Code value of each weight; unquantized leaves stay unchanged."""
  grid = quant.code_grid(params, scheme, layout)
  value = lambda leaf, part, own: (
      leaf if part is None else quant.get(scheme).level(own.encode(leaf)))
  return jax.tree.map(value, params, layout, grid.leaves)


def variants(
    base: types.Params, unlearned: types.Params, scheme: str,
    layout: types.PyTree, seed: int) -> Iterator[tuple[str, types.Params]]:
  """Models to compare, one at a time, so that few exist at once.

  Args:
    base: theta_0.
    unlearned: theta_u.
    scheme: Quantizer Q.
    layout: Block layout of the params.
    seed: Seed of the shuffle.

  Yields:
    Name and params of each model.
  """
  quantize = lambda params: quant.fake_quantize(params, scheme, layout)
  old, new = quantize(base), quantize(unlearned)
  yield 'theta_0', base
  yield 'theta_u', unlearned
  yield 'Q(theta_0)', old
  yield 'Q(theta_u)', new
  zip_leaves = lambda fn, *trees: jax.tree.map(fn, *trees, layout)
  rounded_edit = zip_leaves(
      lambda a, b, part: np.zeros_like(b) if part is None else a - b, new, old)
  del old, new
  yield 'theta_0 + d in leaves not quantized', zip_leaves(
      lambda b, u, part: u if part is None else b, base, unlearned)
  yield 'theta_0 + d in quantized leaves', zip_leaves(
      lambda b, u, part: b if part is None else u, base, unlearned)
  changed = zip_leaves(
      lambda a, b, part: part is not None and np.asarray(a != b),
      *(levels(params, scheme, layout) for params in (base, unlearned)))
  for name, edit in _parts(rounded_edit, changed, seed):
    yield f'theta_0 + q {name}', jax.tree.map(lambda w, e: w + e, base, edit)


def _parts(
    rounded_edit: types.Params, changed: types.PyTree, seed: int
) -> Iterator[tuple[str, types.Params]]:
  """Parts of q, by which weights have it.

  Args:
    rounded_edit: q.
    changed: Whether the code of a weight changed.
    seed: Seed of the shuffle.

  Yields:
    Name and values of each part.
  """
  yield 'in quantized leaves', rounded_edit
  yield 'where the code changed', jax.tree.map(
      lambda q, c: np.where(c, q, 0), rounded_edit, changed)
  yield 'where it did not', jax.tree.map(
      lambda q, c: np.where(c, 0, q), rounded_edit, changed)
  rng = np.random.default_rng(seed)
  yield 'at other weights', jax.tree.map(
      lambda q: _shuffled(q, rng), rounded_edit)


def _parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', type=pathlib.Path, help='finished workdir')
  parser.add_argument('--questions', type=int, default=120,
                      help='largest number of questions per split')
  return parser.parse_args()


def main() -> None:
  """Prints how much rounding carries, and a table of accuracies."""
  args = _parse()
  config = flags_lib.from_flagfile(
      str(args.run / 'flags.txt'), f'--eval_questions={args.questions}',
      '--eval_text_windows=1')
  model = loading.load(config.model)
  unlearned = loading.load(str(args.run / 'model')).params
  evaluator = evaluation.Evaluator(
      config.eval, config.data, inputs_lib.read(config), model)
  splits = [s for s in _SPLITS if s in evaluator.slices]
  layout = model_layout.block_layout(model.config)
  scheme = config.quant_schemes[0]
  found = survival.survival(
      model.params, unlearned, scheme, layout)['total']
  print(f'{scheme}: codes changed {found["changed_codes"]:.3%}, carried'
        f' {found["carried"]:.3f}, cosine {found["cosine"]:.3f}')
  print('| model | ' + ' | '.join(splits) + ' |')
  print('|---|' + '---:|' * len(splits))
  for name, params in variants(
      model.params, unlearned, scheme, layout, config.seed):
    right = evaluator(params).scores.correct
    cells = (f'{right[evaluator.slices[s]].mean():.3f}' for s in splits)
    print(f'| {name} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
  main()
