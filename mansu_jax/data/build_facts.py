"""Expands the compact fact tables in `facts/` into the JSONL in `shipped/`.

`python -m mansu_jax.data.build_facts` rewrites `shipped/` deterministically.
Hashes of question id and candidate choose the wrong choices (`choice_sets.py`),
so a new fact or relation does not change the choices of others.

A table (`facts/<name>.json`) is one relation, or a list `relations` whose
entries inherit the table's other keys. Keys of a relation:

  relation: Name; the first part of the fact ids.
  fact: Pattern of the fact id, optional; default '{relation}/{subject}'.
  train, near: Cloze statements with '{subject}' whose answer comes last. Only
    `train` statements are trained on.
  question, narrative: Texts that `facts/forms.json` inserts into the far forms;
    absent if `asked` replaces these forms.
  lead: Words before a spoken answer ('It is in ...'), optional.
  facts: {group: {subject: answer}}.
  files: {shipped file: [groups]}.
  choices_from: Source of wrong choices, 'relation' (default) or 'group'.
  distractors: Further wrong choices, optional, as a list or {group: list}.
  also_right: {subject: [answers]} never offered as wrong choices, optional.
  per_fact: {use: n}, optional; each fact gets n of the use's forms in rotation.
  asked: Far forms of this relation alone, optional; see below.

Keys of `asked`:

  questions: {name: template with '{subject}'}; the answer comes last. A fact's
    questions are `far_<name>`.
  reverse: {name: template with '{answer}'}, optional; asks for the subject, in
    questions `reverse_<name>_set_<set>`. A fact whose answer is also that of
    another subject, or stands in the subject's name, has none.
  reverse_sets: Number of sets of choices of a reverse question; default 3.
  unseen: Wrong choices that are no answer and no distractor of the relation,
    optional, as a list or {group: list}. Each question is asked again with
    sets of them, as `far_<name>_unseen_<set>`.
  unseen_sets: Number of these sets; default 3.
  same_subject: {subject: wrong choices that belong to it}, at least three each,
    optional. Each question is asked again with them, as `far_<name>_sister`.
  files: {shipped file: [groups]}, optional. These files have the train and the
    asked questions, and the files of the relation stay as they would be without
    `asked`. Without this key, the files of the relation have the asked
    questions instead of the forms of `facts/forms.json`.
"""

import collections
import json
import pathlib
import re
from typing import Any, Iterable, Iterator, Mapping, Sequence

from absl import app

from mansu_jax.data import choice_sets
from mansu_jax.runtime import files as files_lib

FOLDER = pathlib.Path(__file__).parent
USES = ('train', 'near', 'far')

_FORM_TEXTS = frozenset({'question', 'narrative'})
_REQUIRED = frozenset({'relation', 'near', 'facts', 'files'})
_OPTIONAL = frozenset({'train', 'fact', 'choices_from', 'distractors',
                       'also_right', 'per_fact', 'lead', 'asked'})
_ASKED = frozenset({'questions', 'reverse', 'reverse_sets', 'unseen',
                    'unseen_sets', 'same_subject', 'files'})

_KEYS = ('id', 'fact', 'relation', 'prompt', 'answer', 'choices', 'use',
         'reading')

Relation = Mapping[str, Any]


def _read_json(path: pathlib.Path) -> Any:
  try:
    return json.loads(path.read_text(encoding='utf-8'),
                      object_pairs_hook=files_lib.distinct)
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
      texts = _FORM_TEXTS if _has_shared_forms(relation) else frozenset()
      missing = (_REQUIRED | texts) - relation.keys()
      unknown = relation.keys() - _REQUIRED - _OPTIONAL - texts
      if missing or unknown:
        raise ValueError(
            f'{path}: relation {relation.get("relation")!r} lacks'
            f' {sorted(missing)} and has unknown keys {sorted(unknown)}; wanted'
            ' the keys listed in mansu_jax/data/build_facts.py. Correct the'
            ' table.')
      _check_also_right(path, relation)
      _check_asked(path, relation)
      relations.append(relation)
  return relations


def _has_shared_forms(relation: Relation) -> bool:
  """Whether the relation's own files have the forms of `forms.json`."""
  return 'asked' not in relation or 'files' in relation['asked']


def _check_also_right(path: pathlib.Path, relation: Relation) -> None:
  """Raises ValueError if `also_right` names subjects without a fact."""
  unknown = relation.get('also_right', {}).keys() - _subjects(relation)
  if unknown:
    raise ValueError(
        f'{path}: also_right of {relation["relation"]!r} names'
        f' {sorted(unknown)}, which have no fact; wanted subjects of the table.'
        ' Correct or remove them.')


def _check_asked(path: pathlib.Path, relation: Relation) -> None:
  """Raises ValueError if `asked` is invalid."""
  asked = relation.get('asked')
  if asked is None:
    return
  where = f'{path}: asked of {relation["relation"]!r}'
  unknown = asked.keys() - _ASKED
  if unknown or not asked.get('questions'):
    raise ValueError(
        f'{where} has the keys {sorted(asked)}; wanted questions and any of'
        f' {sorted(_ASKED)}. Correct the table.')
  unslotted = [
      template for key, slot in (('questions', '{subject}'),
                                 ('reverse', '{answer}'))
      for template in asked.get(key, {}).values() if slot not in template]
  if unslotted:
    raise ValueError(
        f'{where} has the templates {unslotted}; wanted {{subject}} in each of'
        ' questions and {answer} in each of reverse. Correct them.')
  sisters = asked.get('same_subject', {})
  strangers = sisters.keys() - _subjects(relation)
  if strangers:
    raise ValueError(
        f'{where}: same_subject names {sorted(strangers)}, which have no fact;'
        ' wanted subjects of the table. Correct or remove them.')
  seen = _casefolded(_answers(relation, relation['facts']))
  known = sorted({text for group in relation['facts']
                  for text in _listed(asked.get('unseen', []), group)
                  if text.casefold() in seen})
  if known:
    raise ValueError(
        f'{where}: unseen has {known}, which are answers or distractors of the'
        ' relation; wanted choices that no other question has. Replace them.')


def _slug(text: str) -> str:
  return re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')


def _subjects(relation: Relation) -> set[str]:
  return {name for facts in relation['facts'].values() for name in facts}


def _casefolded(texts: Iterable[str]) -> set[str]:
  return {text.casefold() for text in texts}


def _listed(texts: Any, group: str) -> Sequence[str]:
  """Returns a group's entries of a list or of {group: list}."""
  return texts.get(group, []) if isinstance(texts, dict) else texts


def _fill(template: str, **parts: str) -> str:
  """Fills a template; capitalizes a leading slot."""
  text = template.format(**parts)
  return text[0].upper() + text[1:] if template[0] == '{' else text


def _prompts(
    relation: Relation, forms: Mapping[str, str], subject: str,
) -> dict[str, list[tuple[str, str]]]:
  """Returns {use: [(form name, prompt)]} for one subject."""
  prompts = {
      use: [(f'{use}_{index}', _fill(template, subject=subject))
            for index, template in enumerate(relation.get(use, ()))]
      for use in ('train', 'near')}
  if forms:
    parts = {key: _fill(relation[key], subject=subject) for key in _FORM_TEXTS}
    parts['lead'] = f' {relation["lead"]}' if 'lead' in relation else ''
    prompts['far'] = [(f'far_{name}', form.format(**parts))
                      for name, form in forms.items()]
  return prompts


def _rotated(items: Sequence[Any], index: int, count: int) -> list[Any]:
  """Returns `count` of the items, a different window for each fact index."""
  keep = {(index * count + step) % len(items) for step in range(count)}
  return [item for i, item in enumerate(items) if i in keep]


def _answers(relation: Relation, groups: Iterable[str]) -> set[str]:
  """Returns the answers and distractors of some groups."""
  extra = relation.get('distractors', [])
  return {text for group in groups for text in (
      *relation['facts'][group].values(), *_listed(extra, group))}


def _choice_groups(relation: Relation, group: str) -> Iterable[str]:
  """Returns the groups whose answers are wrong choices in `group`."""
  by_group = relation.get('choices_from') == 'group'
  return [group] if by_group else relation['facts']


def _wrong(
    relation: Relation, group: str, subject: str, texts: Iterable[str],
) -> list[str]:
  """Returns the texts that may serve as wrong choices, sorted."""
  right = {relation['facts'][group][subject],
           *relation.get('also_right', {}).get(subject, [])}
  return sorted(text for text in {*texts} - right
                if not choice_sets.gives_away(text, subject))


def _asked(
    relation: Relation, group: str, subject: str, fact: str,
) -> Iterator[dict[str, Any]]:
  """Yields the asked questions of one fact, without what all lines share."""
  asked, answer = relation['asked'], relation['facts'][group][subject]
  sisters = asked.get('same_subject', {}).get(subject, [])
  choices = {name: _wrong(relation, group, subject, texts) for name, texts in (
      ('usual', _answers(relation, _choice_groups(relation, group))),
      ('unseen', {*_listed(asked.get('unseen', []), group)} - {*sisters}),
      ('sister', sisters))}
  for name, template in asked['questions'].items():
    key = f'{fact}/far_{name}'
    line = {'prompt': _fill(template, subject=subject), 'answer': answer}
    yield {'id': key, **line,
           'choices': choice_sets.choose(key, answer, choices['usual'])}
    if 'unseen' in asked:
      keys = [f'{key}_unseen_{k}' for k in range(asked.get('unseen_sets', 3))]
      for key_k, chosen in zip(keys, choice_sets.choose_sets(
          keys, answer, choices['unseen'])):
        yield {'id': key_k, **line, 'choices': chosen,
               'reading': 'choice_unseen'}
    if sisters:
      key = f'{key}_sister'
      yield {'id': key, **line, 'reading': 'choice_same_subject',
             'choices': choice_sets.choose(key, answer, choices['sister'])}
  others = _other_subjects(relation, group, subject)
  if others is not None:
    for name, template in asked.get('reverse', {}).items():
      keys = [f'{fact}/reverse_{name}_set_{k}'
              for k in range(asked.get('reverse_sets', 3))]
      for key, chosen in zip(keys, choice_sets.choose_sets(
          keys, subject, others)):
        yield {'id': key, 'prompt': _fill(template, answer=answer),
               'answer': subject, 'reading': 'reverse', 'choices': chosen}


def _other_subjects(
    relation: Relation, group: str, subject: str) -> list[str] | None:
  """Returns wrong choices of a reverse question; None if it has no one answer.
  """
  facts, also = relation['facts'], relation.get('also_right', {})
  answer = facts[group][subject]
  shared = collections.Counter(
      text for name in facts for text in facts[name].values())
  if shared[answer] > 1 or answer.casefold() in subject.casefold():
    return None
  return [other for name in _choice_groups(relation, group)
          for other in facts[name]
          if other != subject and answer not in also.get(other, [])
          and not choice_sets.gives_away(other, answer)]


def _questions(
    relation: Relation, forms: Mapping[str, str], group: str,
    uses: Sequence[str], with_asked: bool,
) -> Iterator[dict[str, Any]]:
  """Yields the questions of one group of facts."""
  name, per_fact = relation['relation'], relation.get('per_fact', {})
  pool = _answers(relation, _choice_groups(relation, group))
  for index, (subject, answer) in enumerate(relation['facts'][group].items()):
    if choice_sets.gives_away(answer, subject):
      raise ValueError(
          f'{name}: subject {subject!r} gives away the answer {answer!r};'
          ' wanted a subject that does not spell it. Remove the fact.')
    fact = relation.get('fact', '{relation}/{subject}').format(
        relation=_slug(name), subject=_slug(subject))
    candidates = _wrong(relation, group, subject, pool)
    prompts = _prompts(relation, forms, subject)
    for use in uses:
      count = per_fact.get(use, len(prompts[use]))
      for form, prompt in _rotated(prompts[use], index, count):
        key = f'{fact}/{form}'
        yield {'id': key, 'fact': fact, 'relation': name, 'prompt': prompt,
               'answer': answer, 'use': use, 'choices': choice_sets.choose(
                   key, answer, candidates)}
    if with_asked:
      for line in _asked(relation, group, subject, fact):
        yield {'fact': fact, 'relation': name, 'use': 'far', **line}


def _lines(questions: Iterable[dict[str, Any]]) -> str:
  """Returns the questions as JSONL with the keys in the order of `_KEYS`."""
  return ''.join(
      json.dumps({key: question[key] for key in _KEYS if key in question},
                 ensure_ascii=False) + '\n' for question in questions)


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
  texts = collections.defaultdict(str)
  for relation in read_relations(folder):
    shared = _has_shared_forms(relation)
    own = (forms, USES, False) if shared else ({}, USES[:2], True)
    asked = relation.get('asked', {}).get('files', {})
    for files, how in (relation['files'], own), (asked, ({}, USES[:1], True)):
      for file, groups in files.items():
        for group in groups:
          if group in relation['facts']:
            shown, uses, with_asked = how
            texts[f'{file}.jsonl'] += _lines(
                _questions(relation, shown, group, uses, with_asked))
  return dict(texts)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Got the arguments {argv[1:]}; wanted none.')
  for name, text in sorted(build().items()):
    (FOLDER / 'shipped' / name).write_text(text, encoding='utf-8')
    print(f'{name}: {text.count(chr(10))} questions')


if __name__ == '__main__':
  app.run(main)
