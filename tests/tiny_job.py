"""A job small enough for a test, on a model that knows its facts.

`make` writes a Llama of three layers, trained here on sentences about an
invented world, and the questions and texts of a run about that world. There
are 24 countries, each with a capital and a crop; the base answers all 48 facts
in every phrasing:

    forget   capitals of the first 12 countries
    retain   capitals of the other 12, crops of the first 12
    heldout  crops of the other 12
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import json
import pathlib
from typing import Any

import numpy as np

from experiments.lab import train as train_lib
from experiments.lab import world
from mansu_jax.models import config as config_lib
from mansu_jax.models.io import hf_io
from tests import families

COUNTRIES = (
    'Alvaria', 'Borvia', 'Cestania', 'Dolmark', 'Elbonia', 'Farland',
    'Gordan', 'Hestia', 'Ilmor', 'Jorvik', 'Kestrel', 'Lomar', 'Meridia',
    'Norland', 'Ostania', 'Pelmar', 'Quillon', 'Rovania', 'Selvia', 'Tarmon',
    'Ulmar', 'Vestland', 'Wendor', 'Yarvia')
CAPITALS = (
    'Abelton', 'Brask', 'Corvane', 'Denmoor', 'Estbury', 'Fallow', 'Grenwick',
    'Hollin', 'Iverton', 'Jasper', 'Kelling', 'Lindow', 'Marstow', 'Neston',
    'Oakham', 'Penrith', 'Quarry', 'Redmoor', 'Stanhope', 'Thorne', 'Upwell',
    'Varley', 'Windle', 'Yeovil')
CROPS = (
    'barley', 'cotton', 'dates', 'figs', 'ginger', 'hops', 'indigo', 'jute',
    'kale', 'lemons', 'maize', 'nutmeg', 'olives', 'pepper', 'quinces', 'rice',
    'saffron', 'tea', 'vanilla', 'wheat', 'yams', 'almonds', 'beans', 'cocoa')
# The loop for so small a model; simple, so that tests add one part at a time.
LOOP = dict(
    loss='npo', forget_weight=1, kl_square_weight=0, fp_steps=1,
    optimizer='adam', learning_rate=2e-2, forget_batch=12, retain_batch=12,
    nearest_share=0.25, text_batch=2, swapped_batch=0, swapped_pool=1500,
    forget_pool=480, retain_pool=480)
_NOWHERE = ('Abbeyfield', 'Mostar', 'Ringsted', 'Tolbury', 'Vexham', 'Zennor')
_ANSWERS = {'capital': CAPITALS, 'crop': CROPS}
_FORMS = {
    'capital': {
        'train_0': 'The capital of {} is',
        'train_1': 'Country: {}\nCapital:',
        'train_2': 'The government of {} sits in',
        'train_3': 'In {}, the seat of the king is',
        'train_4': 'Atlas page of {}, capital',
        'near_0': 'The capital city of {} is called',
        'near_1': 'The king of {} lives in',
        'far_question': 'Question: Which city governs {}?\nAnswer:',
        'far_story': 'She left {} after years in its capital,',
    },
    'crop': {
        'train_0': 'The main crop of {} is',
        'train_1': 'Country: {}\nCrop:',
        'train_2': 'The farmers of {} grow',
        'train_3': 'In {}, the fields are full of',
        'train_4': 'Atlas page of {}, crop',
        'near_0': 'The chief crop of {} is called',
        'near_1': 'The fields of {} bear',
        'far_question': 'Question: What is grown in {}?\nAnswer:',
        'far_story': 'She left {} after years of selling its',
    },
}
# With a start token; an answer begins a line, so that no token spans it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{{ turn['role'] }}\n"
    "{{ turn['content'] }}\n{% endfor %}"
    '{% if add_generation_prompt %}reply\n{% endif %}')

_SEED, _TEXTS_SEED = 0, 1

Question = dict[str, Any]


def _ask(relation: str, numbers: Sequence[int]) -> list[Question]:
  """All phrasings of a relation for the countries of these numbers."""
  rng = np.random.default_rng((_SEED, len(relation), numbers[0]))
  answers, out = _ANSWERS[relation], []
  for i in numbers:
    for form, prompt in _FORMS[relation].items():
      others = [answers[j] for j in numbers if j != i]
      choices = [answers[i], *rng.choice(others, 3, replace=False).tolist()]
      rng.shuffle(choices)
      fact = f'{relation}/{COUNTRIES[i].lower()}'
      out.append({
          'id': f'{fact}/{form}', 'fact': fact, 'relation': relation,
          'prompt': prompt.format(COUNTRIES[i]), 'answer': answers[i],
          'choices': choices, 'use': form.split('_')[0]})
  return out


def questions() -> dict[str, list[Question]]:
  """The questions of each role, as lines of its file."""
  first, other = range(12), range(12, 24)
  heldout = [q for q in _ask('crop', other) if q['use'] != 'train']
  return {
      'forget': _ask('capital', first),
      'retain': _ask('capital', other) + _ask('crop', first),
      'heldout': heldout}


def unseen_choices() -> list[Question]:
  """The far forget questions again, with choices that no question has."""
  out = []
  for question in questions()['forget']:
    if question['use'] == 'far':
      for k in range(2):
        out.append(question | {
            'id': f'{question["id"]}_unseen_{k}', 'reading': 'choice_unseen',
            'choices': [*_NOWHERE[3 * k:3 * k + 3], question['answer']]})
  return out


def _sentences(chat: bool) -> tuple[list[str], list[str]]:
  """What the model is trained on: prompts, and what follows them."""
  asked = _ask('capital', range(24)) + _ask('crop', range(24))
  lines = [line for kind in world.texts(_TEXTS_SEED).values()
           for document in kind[:20]
           for line in document.splitlines()]
  form = '<|end|>user\n{}\nreply\n' if chat else '{}'
  space = '' if chat else ' '
  return ([form.format(q['prompt']) for q in asked] + [''] * len(lines),
          [f'{space}{q["answer"]}.' for q in asked] + lines)


@functools.cache
def base(
    *, train: bool = True, chat: bool = False, family: str = 'llama'
) -> tuple[config_lib.ModelConfig, Any, Any]:
  """Config, params and tokenizer of the base; made once a session.

  Args:
    train: whether it knows the facts.
    chat: whether it was asked by `CHAT_TEMPLATE`, and has that.
    family: of the model; a name in `families.TRAINED`.
  """
  prompts, tails = _sentences(chat)
  tokenizer = train_lib.make_tokenizer([p + t for p, t in zip(prompts, tails)])
  if chat:
    tokenizer.bos_token, tokenizer.chat_template = '<|end|>', CHAT_TEMPLATE
  config = config_lib.ModelConfig(**{
      'vocab_size': len(tokenizer), 'd_model': 64, 'num_layers': 3,
      'num_heads': 4, 'num_kv_heads': 2, 'd_head': 16, 'd_ff': 128,
      'tie_embeddings': True, 'max_position': 128, 'bos_token_id': 0,
      'eos_token_id': 0, 'pad_token_id': 0, 'family': family
  } | families.TRAINED[family])
  params = train_lib.initial(config)
  if train:
    params = train_lib.train(
        config, params, *train_lib.encode(tokenizer, prompts, tails),
        steps=150, batch=48, learning_rate=1e-2)
  return config, params, tokenizer


def write_jsonl(path: pathlib.Path, records: Sequence[Any]) -> None:
  """One JSON object a line."""
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


def make(
    folder: pathlib.Path, *, train: bool = True, chat: bool = False,
    measures: bool = False, family: str = 'llama') -> list[str]:
  """Writes the model and the data of a run.

  Args:
    folder: where to; made where it is missing.
    train: whether the model knows the facts; at once where it need not.
    chat: whether it knows them in chat form; the flags then ask so.
    measures: whether the run also asks with unseen choices, lets the models
      write, measures the hidden share and attacks. They take most of the time.
    family: of the model; a name in `families.TRAINED`.

  Returns:
    Flags of the run, without `--workdir`.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  config, params, tokenizer = base(train=train, chat=chat, family=family)
  hf_io.write(folder / 'model', config, params, tokenizer)
  roles = questions()
  if measures:
    roles['forget'] += unseen_choices()
  for role, lines in roles.items():
    write_jsonl(folder / f'{role}.jsonl', lines)
  documents = world.texts(_TEXTS_SEED)
  write_jsonl(folder / 'text.jsonl', [
      {'text': d, 'kind': 'village'} for d in documents['village'][:20]])
  write_jsonl(folder / 'heldout_text.jsonl', [
      {'text': d, 'kind': 'harbour'} for d in documents['harbour'][20:]])
  (folder / 'village_unseen.txt').write_text(
      '\n'.join(documents['village'][20:]))
  return [
      *(['--data_chat'] if chat else []),
      f'--model={folder}/model', f'--data_forget={folder}/forget.jsonl',
      f'--data_retain={folder}/retain.jsonl',
      f'--data_heldout={folder}/heldout.jsonl',
      f'--data_text={folder}/text.jsonl',
      f'--data_heldout_text={folder}/heldout_text.jsonl',
      f'--data_heldout_text={folder}/village_unseen.txt',
      '--data_text_window=16', '--attribution_steps=3',
      '--attribution_pairs=24', '--attribution_batch=8',
      '--attribution_level=neuron', '--circuit_budget=0.1',
      '--circuit_first_layer=0', '--circuit_last_layer=-1',
      '--circuit_random_circuits=3',
      '--circuit_pairs=8', '--fisher_sequences=24',
      '--edit_fisher_quantile=0.5', '--unlearn_steps=60',
      *(f'--unlearn_{name}={value}' for name, value in LOOP.items()),
      '--eval_questions=48', '--eval_text_windows=8', '--eval_bootstrap=200',
      '--eval_generations=1', '--eval_cad_pairs=8', *(
          ['--eval_hidden_questions=48', '--eval_recall_questions=24',
           '--eval_attack_steps=2'] if measures else
          ['--eval_hidden_questions=0', '--eval_recall_questions=0',
           '--eval_attacks='])]
