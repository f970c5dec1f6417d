"""Expands the compact fact tables in `facts/` into the JSONL in `shipped/`.

`python -m mansu_jax.data.build_facts` rewrites `shipped/` deterministically.
The wrong choices of a question are the candidates with the smallest SHA-256 of
(question id, candidate), so a new fact or relation does not change the choices
of others. A second hash orders the four choices; the first hash would put the
answer last most of the time.

A table (`facts/<name>.json`) is one relation, or a list `relations` whose
entries inherit the table's other keys. Keys of a relation:

  relation: Name; the first part of the fact ids.
  fact: Pattern of the fact id, optional; default '{relation}/{subject}'.
  train, near: Cloze statements with '{subject}' whose answer comes last. Only
    `train` statements are trained on.
  question, narrative: Texts that `facts/forms.json` inserts into the far forms.
  lead: Words before a spoken answer ('It is in ...'), optional.
  facts: {group: {subject: answer}}.
  files: {shipped file: [groups]}.
  choices_from: Source of wrong choices, 'relation' (default) or 'group'.
  distractors: Further wrong choices, optional, as a list or {group: list}.
  also_right: {subject: [answers]} never offered as wrong choices, optional.
  per_fact: {use: n}, optional; each fact gets n of the use's forms in rotation.
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
    repeated = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(f'keys given twice: {repeated}; keep one')
  return table


def _read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'),
                      object_pairs_hook=_refuse_duplicates)
  except ValueError as error:
    raise ValueError(
        f'{path} is not a valid fact table ({error}); wanted JSON with distinct'
        ' keys. Correct the file.') from error


def read_relations(folder: pathlib.Path = FOLDER / 'facts') -> list[Relation]:
  """Reads every fact table of a folder, without `forms.json`.

  Args:
    folder: Folder of the compact JSON tables.

  Returns:
    One mapping per relation, in the order of file names.

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
            f' {sorted(missing)} and has unknown keys {sorted(unknown)}; wanted'
            ' the keys listed in mansu_jax/data/build_facts.py. Correct the'
            ' table.')
      _check_also_right(path, relation)
      relations.append(relation)
  return relations


def _check_also_right(path: pathlib.Path, relation: Relation) -> None:
  """Raises ValueError if `also_right` names subjects without a fact."""
  subjects = {name for facts in relation['facts'].values() for name in facts}
  unknown = relation.get('also_right', {}).keys() - subjects
  if unknown:
    raise ValueError(
        f'{path}: also_right of {relation["relation"]!r} names'
        f' {sorted(unknown)}, which have no fact; wanted subjects of the table.'
        ' Correct or remove them.')


def _slug(text: str) -> str:
  return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')


def _digest(*parts: str) -> str:
  return hashlib.sha256('|'.join(parts).encode()).hexdigest()


def _fill(template: str, **parts: str) -> str:
  """Fills a template; capitalizes a leading slot."""
  text = template.format(**parts)
  return text[0].upper() + text[1:] if template[0] == '{' else text


def _prompts(
    relation: Relation, forms: Mapping[str, str], subject: str,
) -> dict[str, list[tuple[str, str]]]:
  """Returns {use: [(form name, prompt)]} for one subject."""
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
  return [item for i, item in enumerate(items) if i in keep]


def _candidates(relation: Relation, group: str, subject: str) -> list[str]:
  """Returns the answers that may serve as wrong choices, sorted."""
  facts, extra = relation['facts'], relation.get('distractors', [])
  groups = [group] if relation.get('choices_from') == 'group' else facts
  pool = {answer for name in groups for answer in facts[name].values()}
  pool |= set(extra.get(group, []) if isinstance(extra, dict) else extra)
  right = {facts[group][subject], *relation.get('also_right', {}).get(
      subject, [])}
  return sorted(pool - right)


def _is_given_away(choice: str, subject: str) -> bool:
  """Whether subject or choice contains the other; ignores short choices."""
  choice, subject = choice.lower(), subject.lower()
  return len(choice) > 2 and (choice in subject or subject in choice)


def choose(key: str, answer: str, candidates: Sequence[str]) -> list[str]:
  """Returns the answer and three wrong choices, in hashed order.

  Candidates whose first letters differ from the choices so far come first,
  because the first token distinguishes them.
  """
  chosen, shared = [answer], []
  for candidate in sorted(candidates, key=lambda text: _digest(key, text)):
    opens = candidate[:3].lower() in {text[:3].lower() for text in chosen}
    (shared if opens else chosen).append(candidate)
  chosen = (chosen + shared)[:NUM_CHOICES]
  if len(chosen) < NUM_CHOICES:
    raise ValueError(
        f'{key}: got {len(candidates)} wrong choices; wanted'
        f' {NUM_CHOICES - 1}. Add distractors to the relation.')
  return sorted(chosen, key=lambda text: _digest('place', key, text))


def _questions(
    relation: Relation, forms: Mapping[str, str], group: str,
) -> Iterator[dict[str, Any]]:
  """Yields the questions of one group of facts."""
  name, per_fact = relation['relation'], relation.get('per_fact', {})
  for index, (subject, answer) in enumerate(relation['facts'][group].items()):
    if _is_given_away(answer, subject):
      raise ValueError(
          f'{name}: subject {subject!r} gives away the answer {answer!r};'
          ' wanted a subject that does not spell it. Remove the fact.')
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
    folder: Folder of the compact JSON tables and of `forms.json`, the far forms
      that all relations share.

  Raises:
    ValueError: a table is invalid, a subject gives away its answer, or a
      question has too few wrong choices.
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
    raise app.UsageError(f'Got the arguments {argv[1:]}; wanted none.')
  for name, text in sorted(build().items()):
    (FOLDER / 'shipped' / name).write_text(text, encoding='utf-8')
    print(f'{name}: {text.count(chr(10))} questions')


if __name__ == '__main__':
  app.run(main)
