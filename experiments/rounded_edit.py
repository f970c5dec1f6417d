"""What carries a diffuse edit through 4-bit rounding.

    python experiments/rounded_edit.py RUN

RUN is a finished workdir, such as one of quickstart_graddiff.flags. The edit is
d = theta_u - theta_0; q = Q(theta_u) - Q(theta_0) is what quantization makes of
it: a jump of a whole code where a boundary was crossed, and a drift of every
weight of a block whose largest weight, its scale, moved. Printed: how much of
d is in q, and the accuracy by split of theta_0, theta_u, Q(theta_0), Q(theta_u)
and, in full precision, of

    theta_0 + d in leaves that are not quantized (embedding, norms)
    theta_0 + d in leaves that are
    theta_0 + q in leaves that are
    theta_0 + q where the code changed: the jumps
    theta_0 + q where it did not: the drift
    theta_0 + q at other weights: shuffled within each leaf

If rounding carries the edit, q forgets as d does and shuffled does not; the two
rows between say by which part. If the embedding carries it, the first forgets.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import numpy as np

from mansu_jax import quant
from mansu_jax.config import flags as run_flags
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading
from mansu_jax.quant import survival
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.prepare import inputs as inputs_lib

_SPLITS = ('forget', 'forget_far', 'retain', 'retain_heldout')


def _shuffled(leaf: jax.Array, rng: np.random.Generator) -> np.ndarray:
  """The same entries at other places."""
  return rng.permutation(np.asarray(leaf).ravel()).reshape(leaf.shape)


def levels(params, scheme, layout):
  """The code's value of each weight; unquantized leaves as they are."""
  grid = quant.code_grid(params, scheme, layout)
  value = lambda leaf, part, own: (
      leaf if part is None else quant.get(scheme).level(own.encode(leaf)))
  return jax.tree.map(value, params, layout, grid.leaves)


def variants(base, unlearned, scheme, layout, seed):
  """`(name, params)` one after the other, so that few exist at once."""
  rng = np.random.default_rng(seed)
  quantize = lambda params: quant.fake_quantize(params, scheme, layout)
  old, new = quantize(base), quantize(unlearned)
  yield 'theta_0', base
  yield 'theta_u', unlearned
  yield 'Q(theta_0)', old
  yield 'Q(theta_u)', new
  zip_leaves = lambda fn, *trees: jax.tree.map(fn, *trees, layout)
  carried = zip_leaves(
      lambda a, b, part: np.zeros_like(b) if part is None else a - b, new, old)
  del old, new
  add = lambda edit: jax.tree.map(lambda w, e: w + e, base, edit)
  yield 'theta_0 + d in leaves not quantized', zip_leaves(
      lambda b, u, part: u if part is None else b, base, unlearned)
  yield 'theta_0 + d in quantized leaves', zip_leaves(
      lambda b, u, part: b if part is None else u, base, unlearned)
  yield 'theta_0 + q in quantized leaves', add(carried)
  changed = zip_leaves(
      lambda a, b, part: part is not None and np.asarray(a != b),
      *(levels(params, scheme, layout) for params in (base, unlearned)))
  yield 'theta_0 + q where the code changed', add(jax.tree.map(
      lambda q, c: np.where(c, q, 0), carried, changed))
  yield 'theta_0 + q where it did not', add(jax.tree.map(
      lambda q, c: np.where(c, 0, q), carried, changed))
  yield 'theta_0 + q at other weights', add(
      jax.tree.map(lambda q: _shuffled(q, rng), carried))


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('run', type=pathlib.Path, help='a finished workdir')
  parser.add_argument(
      '--questions', type=int, default=120, help='of each split, at most')
  args = parser.parse_args()
  run = args.run
  config = run_flags.from_flagfile(
      str(run / 'flags.txt'), f'--eval_questions={args.questions}',
      '--eval_text_windows=1')
  inputs = inputs_lib.read(config)
  model = loading.load(config.model)
  unlearned = loading.load(str(run / 'model')).params
  evaluator = evaluation.Evaluator(config, inputs, model)
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
