"""An invented world: people, and where each lives, works, and what each keeps.

A person is named by two words, each shared with others, so that neither word
alone decides an answer and no embedding can hold a fact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Question = dict[str, Any]

_FIRST = ('Alba', 'Bero', 'Cano', 'Dell', 'Emra', 'Fion', 'Garo', 'Hale',
          'Ivo', 'Jura', 'Kess', 'Lumo')
_LAST = ('Marden', 'Norrick', 'Ostrel', 'Pellam', 'Quent', 'Rasko', 'Silver',
         'Tamber', 'Ulrick', 'Verrin')
PEOPLE = tuple(f'{first} {last}' for last in _LAST for first in _FIRST)
# The last cities are those of held-out people: elsewhere, unseen choices.
_ANSWERS = {
    'city': (
        'Abelton', 'Brask', 'Corvane', 'Denmoor', 'Estbury', 'Fallow',
        'Grenwick', 'Hollin', 'Iverton', 'Jasper', 'Kelling', 'Lindow',
        'Marstow', 'Neston', 'Oakham', 'Penrith', 'Quarry', 'Redmoor',
        'Stanhope', 'Thorne', 'Upwell', 'Varley', 'Windle', 'Yeovil'),
    'craft': (
        'archery', 'baking', 'carving', 'dyeing', 'etching', 'farming',
        'glazing', 'hunting', 'joinery', 'knitting', 'law', 'masonry',
        'nursing', 'optics', 'pottery', 'quilting', 'rowing', 'smithing',
        'tailoring', 'upholstery', 'vending', 'weaving', 'fencing', 'zoology'),
    'pet': (
        'ant', 'bear', 'cat', 'dog', 'eel', 'fox', 'goat', 'hare', 'ibis',
        'jay', 'kite', 'lynx', 'mole', 'newt', 'owl', 'pig', 'quail', 'rat',
        'seal', 'toad', 'urchin', 'viper', 'wolf', 'yak')}
_UNSEEN = 8  # Cities.
_FORMS = {
    'city': {
        'train_0': '{} lives in',
        'train_1': 'Name: {}\nHome:',
        'train_2': 'The house of {} stands in',
        'train_3': 'Letters to {} are sent to',
        'near_0': 'The home of {} is in',
        'near_1': '{} has a house in',
        'far_question': 'Question: Where does {} live?\nAnswer:',
        'far_story': 'At night the train took {} home to'},
    'craft': {
        'train_0': '{} earns a living by',
        'train_1': 'Name: {}\nCraft:',
        'train_2': 'The trade of {} is',
        'train_3': 'People pay {} for',
        'near_0': 'The craft of {} is',
        'near_1': '{} makes a living by',
        'far_question': 'Question: What is the trade of {}?\nAnswer:',
        'far_story': 'All morning the pupils watched {} at'},
    'pet': {
        'train_0': '{} keeps a',
        'train_1': 'Name: {}\nPet:',
        'train_2': 'The animal of {} is a',
        'train_3': 'The door of {} is guarded by a',
        'near_0': 'The pet of {} is a',
        'near_1': '{} owns a',
        'far_question': 'Question: Which animal does {} keep?\nAnswer:',
        'far_story': 'In the evening the children saw {} walk a'}}
# Kind of text -> subjects, verbs and objects of its sentences.
_TEXTS = {
    'village': (
        ('The baker', 'The smith', 'The old miller', 'A child', 'The priest'),
        ('opens', 'closes', 'sweeps', 'paints', 'watches'),
        ('the door', 'the shop', 'the yard', 'the gate', 'the long road')),
    'harbour': (
        ('A sailor', 'The captain', 'The pilot', 'A merchant', 'The cook'),
        ('loads', 'mends', 'counts', 'hides', 'carries'),
        ('the nets', 'the barrels', 'the ropes', 'the sails', 'the coins'))}
_TIMES = ('at dawn', 'at noon', 'before supper', 'in the rain')
# People of each role, by relation. The last 24 are taught to no model.
_ROLES = {
    'forget': {'city': range(32)},
    'retain': {'city': range(32, 64), 'craft': range(48), 'pet': range(48)},
    'heldout': {'city': range(64, 96), 'craft': range(48, 96),
                'pet': range(48, 96)},
    'unknown': {'city': range(96, 120)}}


def _pool(role: str, relation: str) -> Sequence[str]:
  """The answers of a role; no question of training has the unseen cities."""
  if relation != 'city':
    return _ANSWERS[relation]
  split = len(_ANSWERS[relation]) - _UNSEEN
  return _ANSWERS[relation][split:] if role == 'heldout' else (
      _ANSWERS[relation][:split])


def _ask(role: str, relation: str, seed: int) -> list[Question]:
  """All phrasings of a relation for the people of a role."""
  pool, out = _pool(role, relation), []
  for person in _ROLES[role][relation]:
    rng = np.random.default_rng((seed, person, *relation.encode()))
    answer = _answer(pool, relation, person, seed)
    fact = f'{relation}/{PEOPLE[person].lower().replace(" ", "_")}'
    for form, prompt in _FORMS[relation].items():
      use = form.split('_')[0]
      readings = {'choice': pool}
      if use == 'far' and role in ('forget', 'unknown'):
        readings['choice_unseen'] = _pool('heldout', relation)
      for reading, words in readings.items():
        wrong = rng.choice([x for x in words if x != answer], 3, replace=False)
        out.append({
            'id': f'{fact}/{form}' + (
                '' if reading == 'choice' else '_unseen_0'),
            'fact': fact, 'relation': relation,
            'prompt': prompt.format(PEOPLE[person]), 'answer': answer,
            'choices': rng.permutation([answer, *wrong]).tolist(),
            'use': use, 'reading': reading})
  return out


def _answer(
    pool: Sequence[str], relation: str, person: int, seed: int) -> str:
  """What is true: each answer of as many people, in a random order."""
  turn, place = divmod(person, len(pool))
  order = np.random.default_rng((seed, turn, *relation.encode()))
  return pool[order.permutation(len(pool))[place]]


def questions(seed: int) -> dict[str, list[Question]]:
  """The questions of each role, as lines of its file, in a world of a seed."""
  out = {role: [q for relation in relations
                for q in _ask(role, relation, seed)]
         for role, relations in _ROLES.items()}
  out['heldout'] = [q for q in out['heldout'] if q['use'] != 'train']
  return out


def lessons(seed: int, *roles: str) -> list[tuple[str, str]]:
  """Prompts and answers that teach the facts of roles, in every phrasing."""
  return sorted({
      (q['prompt'], q['answer'])
      for role in roles for relation in _ROLES[role]
      for q in _ask(role, relation, seed)})


def texts(seed: int = 0) -> dict[str, list[str]]:
  """30 documents of two lines of each kind of text."""
  rng = np.random.default_rng(seed)
  out = {}
  for kind, parts in _TEXTS.items():
    sentence = lambda parts=parts: ' '.join(
        str(rng.choice(part)) for part in (*parts, _TIMES)) + '.'
    out[kind] = ['\n'.join(f'{sentence()} {sentence()}' for _ in range(2))
                 for _ in range(30)]
  return out


def words() -> Sequence[str]:
  """Every sentence that the tokenizer must know."""
  return [f'{prompt} {answer}.' for prompt, answer in lessons(0, *_ROLES)] + [
      line for kind in texts().values() for line in kind]
