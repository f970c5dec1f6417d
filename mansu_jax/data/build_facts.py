"""Expands the compact fact tables in `facts/` into the JSONL in `shipped/`.

`python -m mansu_jax.data.build_facts` rewrites `shipped/` and is deterministic:
the wrong choices of a question are the candidates with the smallest SHA-256 of
(question id, candidate), so that adding a fact or a relation does not reshuffle
the others. A second hash orders the four choices: by the first, the answer
would mostly come last.

A table (`facts/<name>.json`) is one relation, or several under `relations` that
inherit the table's other keys. Keys of a relation:

  relation: its name, the first part of the fact ids.
  fact: optional pattern of the fact id, default '{relation}/{subject}'.
  train, near: templates with '{subject}', cloze statements whose answer comes
    last. Only the first kind is ever trained on.
  question, narrative: what `facts/forms.json` puts into the far forms.
  lead: optional word before a spoken answer ('It is in ...').
  facts: {group: {subject: answer}}.
  files: {shipped file: [groups]}.
  choices_from: 'relation' (default) or 'group', where wrong choices come from.
  distractors: optional further wrong choices, as a list or {group: list}.
  also_right: optional {subject: [answers]} never offered as wrong choices.
  per_fact: optional {use: n}; each fact gets n of the use's forms in rotation.
"""

import hashlib
import json
import pathlib
import re
from typing import Any, Iterator, Mapping, Sequence

from absl import app

FOLDER = pathlib.Path(__file__).parent
USES = ('train', 'near', 'far')
NUM_CHOICES = 4

_REQUIRED = frozenset({'relation', 'near', 'question', 'narrative', 'facts',
                       'files'})
_OPTIONAL = frozenset({'train', 'fact', 'choices_from', 'distractors',
                       'also_right', 'per_fact', 'lead'})

Relation = Mapping[str, Any]


def _refuse_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
  table = dict(pairs)
  if len(table) < len(pairs):
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(f'keys given twice: {twice}; keep one')
  return table


def _read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'),
                      object_pairs_hook=_refuse_duplicates)
  except ValueError as error:
    raise ValueError(f'{path} is no valid fact table: {error}') from error


def read_relations(folder: pathlib.Path = FOLDER / 'facts') -> list[Relation]:
  """Reads every table of `folder` but the forms.

  Args:
    folder: the folder of the compact JSON tables.

  Returns:
    One mapping a relation, in the order of file names.

  Raises:
    ValueError: a key is missing, unknown or given twice.
  """
  relations = []
  for path in sorted(folder.glob('*.json')):
    if path.name == 'forms.json':
      continue
    table = _read_json(path)
    shared = {key: table[key] for key in table if key != 'relations'}
    for own in table.get('relations', [{}]):
      relation = {**shared, **own}
      missing = _REQUIRED - relation.keys()
      unknown = relation.keys() - _REQUIRED - _OPTIONAL
      if missing or unknown:
        raise ValueError(
            f'{path}: relation {relation.get("relation")!r} lacks'
            f' {sorted(missing)} and has unknown keys {sorted(unknown)}; see'
            ' the keys in mansu_jax/data/build_facts.py.')
      _check_also_right(path, relation)
      relations.append(relation)
  return relations


def _check_also_right(path: pathlib.Path, relation: Relation) -> None:
  """Refuses exclusions of unknown subjects, which would do nothing."""
  subjects = {name for facts in relation['facts'].values() for name in facts}
  unknown = relation.get('also_right', {}).keys() - subjects
  if unknown:
    raise ValueError(
        f'{path}: also_right of {relation["relation"]!r} names'
        f' {sorted(unknown)}, which have no fact; correct or drop them.')


def _slug(text: str) -> str:
  return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')


def _digest(*parts: str) -> str:
  return hashlib.sha256('|'.join(parts).encode()).hexdigest()


def _fill(template: str, **parts: str) -> str:
  """Fills a template; one that opens with a slot gets a capital letter."""
  text = template.format(**parts)
  return text[0].upper() + text[1:] if template[0] == '{' else text


def _prompts(
    relation: Relation, forms: Mapping[str, str], subject: str,
) -> dict[str, list[tuple[str, str]]]:
  """Returns {use: [(form name, prompt)]} of one subject."""
  parts = {key: _fill(relation[key], subject=subject)
           for key in ('question', 'narrative')}
  parts['lead'] = f' {relation["lead"]}' if 'lead' in relation else ''
  prompts = {
      use: [(f'{use}_{index}', _fill(template, subject=subject))
            for index, template in enumerate(relation.get(use, ()))]
      for use in ('train', 'near')}
  prompts['far'] = [(f'far_{name}', form.format(**parts))
                    for name, form in forms.items()]
  return prompts


def _rotated(items: Sequence[Any], index: int, count: int) -> list[Any]:
  """Returns `count` of the items, a different window for each fact index."""
  keep = {(index * count + step) % len(items) for step in range(count)}
  return [item for place, item in enumerate(items) if place in keep]


def _candidates(relation: Relation, group: str, subject: str) -> list[str]:
  """Returns the answers that may stand as wrong choices, sorted."""
  facts, extra = relation['facts'], relation.get('distractors', [])
  groups = [group] if relation.get('choices_from') == 'group' else facts
  pool = {answer for name in groups for answer in facts[name].values()}
  pool |= set(extra.get(group, []) if isinstance(extra, dict) else extra)
  right = {facts[group][subject], *relation.get('also_right', {}).get(
      subject, [])}
  return sorted(pool - right)


def _is_given_away(choice: str, subject: str) -> bool:
  """Whether the subject spells the choice; symbols and digits never count."""
  choice, subject = choice.lower(), subject.lower()
  return len(choice) > 2 and (choice in subject or subject in choice)


def choose(key: str, answer: str, candidates: Sequence[str]) -> list[str]:
  """Returns the answer and three wrong choices, in an order of their own.

  Candidates that open with other letters than the choices so far go first:
  choices that share their first token are told apart by their later tokens
  alone.
  """
  chosen, shared = [answer], []
  for candidate in sorted(candidates, key=lambda text: _digest(key, text)):
    opens = candidate[:3].lower() in {text[:3].lower() for text in chosen}
    (shared if opens else chosen).append(candidate)
  chosen = (chosen + shared)[:NUM_CHOICES]
  if len(chosen) < NUM_CHOICES:
    raise ValueError(
        f'{key}: {len(candidates)} wrong choices, wanted {NUM_CHOICES - 1};'
        ' add distractors to the relation.')
  return sorted(chosen, key=lambda text: _digest('place', key, text))


def _questions(
    relation: Relation, forms: Mapping[str, str], group: str,
) -> Iterator[dict[str, Any]]:
  """Yields the questions of one group of facts."""
  name, per_fact = relation['relation'], relation.get('per_fact', {})
  for index, (subject, answer) in enumerate(relation['facts'][group].items()):
    if _is_given_away(answer, subject):
      raise ValueError(f'{name}: {subject!r} gives away {answer!r}; drop it.')
    fact = relation.get('fact', '{relation}/{subject}').format(
        relation=_slug(name), subject=_slug(subject))
    candidates = [text for text in _candidates(relation, group, subject)
                  if not _is_given_away(text, subject)]
    prompts = _prompts(relation, forms, subject)
    for use in USES:
      count = per_fact.get(use, len(prompts[use]))
      for form, prompt in _rotated(prompts[use], index, count):
        key = f'{fact}/{form}'
        yield {'id': key, 'fact': fact, 'relation': name, 'prompt': prompt,
               'answer': answer, 'choices': choose(key, answer, candidates),
               'use': use}


def build(folder: pathlib.Path = FOLDER / 'facts') -> dict[str, str]:
  """Returns {file name: JSONL text} of all shipped files.

  Args:
    folder: the folder of the compact JSON tables and of `forms.json`, the far
      forms that all relations share.

  Raises:
    ValueError: a bad table, an answer that its subject gives away, or too few
      wrong choices.
  """
  forms = _read_json(folder / 'forms.json')
  texts = {}
  for relation in read_relations(folder):
    for file, groups in relation['files'].items():
      for group in groups:
        if group not in relation['facts']:
          continue
        lines = (json.dumps(question, ensure_ascii=False)
                 for question in _questions(relation, forms, group))
        texts[f'{file}.jsonl'] = texts.get(f'{file}.jsonl', '') + ''.join(
            f'{line}\n' for line in lines)
  return texts


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'No arguments are known, got {argv[1:]}.')
  for name, text in sorted(build().items()):
    (FOLDER / 'shipped' / name).write_text(text, encoding='utf-8')
    print(f'{name}: {text.count(chr(10))} questions')


if __name__ == '__main__':
  app.run(main)
