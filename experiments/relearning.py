"""How soon does what was forgotten come back? Every arm of `circuit_worth`.

  python -m experiments.relearning DIR [--seed=0] [--arms budget_1 ...]
      [--models NAME=PATH ...] [--controls]

DIR is a folder of `experiments.circuit_worth`, or a new one where `--models`
are given: Hugging Face folders, such as `model/` of a finished run. With
`--controls` each of these is followed by an edit that only hides as many
answers (`circuits.suppression`). Half of the forgotten facts are
taught again to each edited model, all weights free, by their train phrasings;
asked are the far phrasings of the other half, of which nothing is taught: what
comes back there was still in the weights. Beside it stand CAD, on the arm's own
circuit and on the attributed one of its setting (of arms), and readability. One
JSON file an arm or model, `relearning/NAME_sN.json`, written when it is done;
what is there is not run again. The batches are the same for all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import dataclasses
import functools
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import circuit_worth_table
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.config import flags as run_flags
from mansu_jax.data import tokenization
from mansu_jax.erasure import divergence
from mansu_jax.models import decoder
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import files
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import readability
from mansu_jax.stages.prepare import checks
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import losses

_BATCH = 16
_ASKED_AT = (0, 2, 5, 10, 20)  # Steps.


def sequences(
    questions: Any, tokenizer: Any, *, chat: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Tokens [n, T] of prompts and answers, and where the answers are."""
  rows = [(e.prompt, e.choices[q.answer_index]) for q, e in zip(
      questions, tokenization.encode_questions(
          questions, tokenizer, chat=chat))]
  width = max(len(prompt) + len(answer) for prompt, answer in rows)
  tokens = np.zeros((len(rows), width), np.int32)
  answers = np.zeros((len(rows), width), bool)
  for i, (prompt, answer) in enumerate(rows):
    tokens[i, :len(prompt) + len(answer)] = [*prompt, *answer]
    answers[i, len(prompt):len(prompt) + len(answer)] = True
  return tokens, answers


@functools.partial(jax.jit, static_argnames=('config', 'tx'), donate_argnums=(
    2, 3))
def _step(config, tx, params, state, tokens, answers):
  """One step on the mean sequence NLL of the answers."""
  def loss(params):
    hidden = decoder.forward(config, params, tokens[:, :-1])
    nll = losses.token_nll(decoder.unembed(params, hidden), tokens[:, 1:])
    return jnp.sum(nll * answers[:, 1:]) / len(tokens)

  value, grads = jax.value_and_grad(loss)(params)
  updates, state = tx.update(grads, state, params)
  return optax.apply_updates(params, updates), state, value


def _read(path: pathlib.Path) -> tuple[graph.Circuit, types.PyTree]:
  """The circuit of an arm and its slices."""
  with np.load(path, allow_pickle=False) as z:
    arrays = dict(z)
  theta = tree_paths.unflatten({
      name.removeprefix('theta/'): x for name, x in arrays.items()
      if name.startswith('theta/')})
  return graph.Circuit(**{kind: arrays[kind] for kind in graph.KINDS}), theta


def relearn(
    model, params, taught, ask, *, rate, seed) -> list[dict[str, float]]:
  """Far accuracy by step of what is taught and of what is not."""
  tokens, answers = taught
  tx = optax.adam(rate)
  params = jax.tree.map(jnp.copy, params)  # Steps give their input away.
  state = tx.init(params)
  rng, out, order = np.random.default_rng(seed), [], np.zeros(0, int)
  for step in range(_ASKED_AT[-1] + 1):
    if step in _ASKED_AT:
      out.append({'step': step} | ask(params))
    if order.size < _BATCH:
      order = np.append(order, rng.permutation(len(tokens)))
    chosen, order = order[:_BATCH], order[_BATCH:]
    params, state, _ = _step(
        model.config, tx, params, state, tokens[chosen], answers[chosen])
  return out


class Edited(NamedTuple):
  """A model that has forgotten."""

  name: str
  params: Callable[[], types.Params]
  circuits: dict[str, graph.Circuit]  # That CAD is measured on.


def _arms(
    folder: pathlib.Path, seed: int, model: Any, wanted: list[str] | None
) -> Iterator[Edited]:
  """Arms that are done; all, or some."""
  for path in sorted(folder.glob(f'*_s{seed}.npz')):
    if not path.with_suffix('.json').exists():
      continue  # Still running.
    arm = json.loads(path.with_suffix('.json').read_text())['arm']
    if wanted and arm not in wanted:
      continue
    circuit, theta = _read(path)
    circuits = {'own': circuit}
    attributed = folder / f'{circuit_worth_table.setting(arm)}_s{seed}.npz'
    if circuit_worth_table.is_random(arm) and attributed.exists():
      circuits['attributed'] = _read(attributed)[0]
    edit = edits.circuit_edit(model, circuit, (), quantized_views=False)
    yield Edited(arm, functools.partial(edit.merge, theta), circuits)


def _models(
    named: list[str], controls: bool, config: Any, inputs: Any, model: Any
) -> Iterator[Edited]:
  """Models by name and path, and what hides as many answers as each."""
  pairs = prompt_pairs.forget_pairs(
      config.attribution, inputs.splits, model.tokenizer, seed=config.seed,
      chat=config.data.chat)
  for one in named:
    name, _, path = one.partition('=')
    load = functools.cache(lambda path=path: loading.load(path).params)
    yield Edited(name, load, {})
    if controls:
      reader = lambda load=load: readability.Reader(
          config, inputs, model, load(), {'fp': lambda params: params})
      yield Edited(
          f'{name}_control', lambda reader=reader: reader().control(
              pairs[:config.eval.cad_pairs]).params, {})


def main() -> None:
  """Relearns every arm and model."""
  parser = argparse.ArgumentParser(
      description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--arms', nargs='*', help='all that there are by default')
  parser.add_argument('--models', nargs='*', default=[], metavar='NAME=PATH')
  parser.add_argument('--controls', action='store_true')
  parser.add_argument('--run', default='experiments/quickstart.flags')
  parser.add_argument('--learning_rate', type=float, default=2e-5)
  args = parser.parse_args()
  folder, seed = args.folder, args.seed
  (folder / 'relearning').mkdir(parents=True, exist_ok=True)
  config = run_flags.from_flagfile(
      args.run, f'--seed={seed}', f'--workdir={folder}/unused')
  inputs = checks.read(config)
  model = loading.load(
      config.model, hf_io.EXPORT_DTYPES[config.export_dtype])
  taught, is_taught, far = _halves(config, inputs, model, seed)
  divergences = _divergences(config, inputs, model)
  readable = _readable(config, inputs, model)

  def ask(params):
    right = far(params).scores.correct
    return {'taught': float(right[is_taught].mean()),
            'not_taught': float(right[~is_taught].mean()),
            'right': ''.join(map(str, right.astype(int)))}

  for edited in itertools.chain(
      _arms(folder, seed, model, args.arms),
      _models(args.models, args.controls, config, inputs, model)):
    name = edited.name.replace(':', '_').replace('+', '_')
    out = folder / 'relearning' / f'{name}_s{seed}.json'
    if out.exists():
      continue
    params = edited.params()
    found = {
        'arm': edited.name, 'learning_rate': args.learning_rate,
        'cad': divergences(params, edited.circuits),
        'readability': readable(params),
        'relearning': relearn(
            model, params, taught, ask, rate=args.learning_rate, seed=seed)}
    files.write_json(out, found)
    print(edited.name, [(x['step'], round(x['not_taught'], 3))
                        for x in found['relearning']], flush=True)


def _halves(config, inputs, model, seed):
  """What is taught of half of the facts; whether a far question is of them."""
  train = inputs.splits.forget_train
  known = circuit_worth_table.taught((q.fact for q in train), seed)
  far = evaluation.Evaluator(config, dataclasses.replace(
      inputs, heldout_text=[], evaluation={
          'forget_far': inputs.evaluation['forget_far']}), model)
  return (sequences([q for q in train if q.fact in known], model.tokenizer,
                    chat=config.data.chat),
          np.array([q.fact in known for q in far.questions]), far)


def _divergences(config, inputs, model):
  """`(params, circuits by name) -> CAD by name`, on the run's pairs."""
  pairs = prompt_pairs.forget_pairs(
      config.attribution, inputs.splits, model.tokenizer, seed=config.seed,
      chat=config.data.chat)[:config.eval.cad_pairs]
  batches = pair_batches.pack(pairs, config.attribution.batch)
  score = lambda params: eap_ig.score_pairs(
      model.config, params, batches, steps=config.attribution.steps)
  before, answered = eap_ig.keep_answered(score(model.params))
  groups = np.array([p.fact for p in pairs])[answered]

  def divergences(params, circuits):
    after = jax.tree.map(lambda x: x[answered], score(params))
    return {name: divergence.measure(
        before, after, {}, nodes, groups, resamples=config.eval.bootstrap,
        seed=config.seed) for name, nodes in circuits.items()}

  return divergences


def _readable(config, inputs, model):
  """`params -> readability`, in full precision."""
  def measure(params):
    reader = readability.Reader(
        config, inputs, model, params, {'fp': lambda params: params})
    return reader.measure(None)

  return measure


if __name__ == '__main__':
  main()
