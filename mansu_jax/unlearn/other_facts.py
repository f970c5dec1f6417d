"""Targets of the forget term that come from other facts of the same relation.

Partners to swap answers with, partners whose prompts give the priors of
answers, averaged answer distributions, and wrong choices.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np

from mansu_jax.unlearn import step_data


def confusable_groups(
    relations: Sequence[str], facts: Sequence[str], answers: Sequence[str],
    choices: Sequence[Sequence[str]]) -> list[str]:
  """Groups facts that are each other's wrong choices, directly or via others.

  If the questions never offer an Asian capital for a European country, the two
  are separate groups: averaging over both would also erase the continent.

  Args:
    relations: relation of each question.
    facts: fact of each question.
    answers: right answer of each question.
    choices: choices of each question.

  Returns:
    The group of each question: its relation if all its facts are one group,
    else the relation with the group's first fact. A relation is not divided
    if one of its facts shares no choice with another.
  """
  parent = {key: key for key in zip(relations, facts)}
  owners: dict[tuple[str, str], list[tuple[str, str]]] = {}
  for relation, fact, answer in zip(relations, facts, answers):
    owners.setdefault((relation, answer), []).append((relation, fact))

  def root(key):
    while parent[key] != key:
      parent[key] = key = parent[parent[key]]
    return key

  order = {key: i for i, key in enumerate(parent)}
  for relation, fact, some in zip(relations, facts, choices):
    for choice in some:
      for other in owners.get((relation, choice), ()):
        ends = sorted((root((relation, fact)), root(other)), key=order.get)
        parent[ends[1]] = ends[0]  # The first fact names its group.
  roots = {key: root(key) for key in parent}
  sizes = collections.Counter(roots.values())
  whole = {relation for (relation, _), size in sizes.items() if size == 1}
  groups = collections.Counter(relation for relation, _ in sizes)
  whole |= {relation for relation, count in groups.items() if count == 1}
  return [
      relation if relation in whole
      else f'{relation} ({roots[relation, fact][1]} and others)'
      for relation, fact in zip(relations, facts)]


class Partners:
  """Finds questions about other facts, the nearest kind that exists.

  The kinds are, in this order: forget questions of the same group and template,
  of the same group, of the same relation; retain questions of the same relation
  and template, of the same relation; any forget question; any retain question.
  A fact with the same answer is never a partner.

  Args:
    groups: group of each forget question, from `confusable_groups`.
    forget: `(relation, template, fact, answer)` of each forget question.
    retain: the same of each retain question.
  """

  def __init__(
      self, groups: Sequence[str],
      forget: Sequence[tuple[str, str, str, str]],
      retain: Sequence[tuple[str, str, str, str]] = ()):
    self._groups, self._forget = list(groups), list(forget)
    self._all = [*forget, *retain]
    self._of: dict[tuple[str, ...], list[int]] = {}
    for i, (relation, template, _, _) in enumerate(self._all):
      if i < len(self._forget):
        keys = (('group', groups[i], template), ('group', groups[i]),
                ('relation', relation), ('forget',))
      else:
        keys = (('kept', relation, template), ('kept', relation), ('retain',))
      for key in keys:
        self._of.setdefault(key, []).append(i)

  def of(self, question: int, *, same_relation: bool = False) -> np.ndarray:
    """Indices [k] in the forget set followed by the retain set; [] if none.

    Args:
      question: index in the forget set.
      same_relation: whether only forget questions of its relation will do.
    """
    relation, template, fact, answer = self._forget[question]
    group = self._groups[question]
    kinds = [('group', group, template), ('group', group),
             ('relation', relation)]
    if not same_relation:
      kinds += [('kept', relation, template), ('kept', relation), ('forget',),
                ('retain',)]
    for kind in kinds:
      found = [j for j in self._of.get(kind, ())
               if self._all[j][2] != fact and self._all[j][3] != answer]
      if found:
        return np.array(found)
    return np.array([], int)


def swap_partners(
    groups: Sequence[str], relations: Sequence[str], templates: Sequence[str],
    facts: Sequence[str]) -> list[np.ndarray]:
  """For each sequence, the sequences of other facts to swap answers with.

  They have the same group and template if possible, else the same group, else
  the same relation.

  Args:
    groups: group of each sequence, from `confusable_groups`.
    relations: relation of each sequence.
    templates: template of each sequence.
    facts: fact of each sequence.

  Returns:
    Row indices [k] for each sequence.

  Raises:
    ValueError: a relation has a single fact.
  """
  # Equal answers may be swapped.
  partners = Partners(groups, list(zip(relations, templates, facts, facts)))
  out = []
  for i, (relation, fact) in enumerate(zip(relations, facts)):
    out.append(partners.of(i, same_relation=True))
    if not out[-1].size:
      raise ValueError(
          '--unlearn_loss=answer_swap needs two facts of a relation, but'
          f' {str(relation)!r} has only {str(fact)!r}. Use'
          ' --unlearn_loss=prior, or add facts.')
  return out


def prior_partners(
    partners: Partners, facts: Sequence[str], count: int,
    rng: np.random.Generator) -> np.ndarray:
  """Questions whose prompts give the priors of the forget answers.

  Args:
    partners: of the forget and the retain set.
    facts: fact of each forget question.
    count: number of partners of each.
    rng: generator of the draw.

  Returns:
    Indices in the forget set followed by the retain set, [count, n].

  Raises:
    ValueError: every other question has the answer of this one.
  """
  drawn = []
  for i, fact in enumerate(facts):
    found = partners.of(i)
    if not found.size:
      raise ValueError(
          '--unlearn_loss=prior needs a fact with another answer than that of'
          f' {fact!r}, in the forget or the retain set. Add facts, or use'
          ' --unlearn_loss=npo.')
    drawn.append(rng.choice(found, count))
  return np.stack(drawn, axis=1)


def group_marginals(
    groups: Sequence[str], relations: Sequence[str], templates: Sequence[str],
    probabilities: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """The base's answer distribution per template, averaged over a group.

  A model with this distribution no longer knows the fact, and still answers
  with the right kind of entity. If a group has a single sequence of a template,
  the average is over the relation.

  Args:
    groups: group of each sequence, from `confusable_groups`.
    relations: relation of each sequence.
    templates: template of each sequence.
    probabilities: rows [m] -> the base's next-token probabilities [m, V] at
      the end of those sequences' prompts.

  Returns:
    A table [G, V] float32, and each sequence's row in it, [n].

  Raises:
    ValueError: a relation has a single sequence of a template, whose average
      would be the answer.
  """
  fine = list(zip(groups, templates))
  coarse = list(zip(relations, templates))
  count = collections.Counter(fine)
  members: dict[tuple[int, tuple[str, str]], list[int]] = {}
  for i, (cell, whole) in enumerate(zip(fine, coarse)):
    members.setdefault((0, cell), []).append(i)
    members.setdefault((1, whole), []).append(i)
  cells = [(0, cell) if count[cell] > 1 else (1, whole)
           for cell, whole in zip(fine, coarse)]
  names = list(dict.fromkeys(cells))
  row_of = {name: g for g, name in enumerate(names)}
  table = []
  for name in names:
    if len(members[name]) < 2:
      raise ValueError(
          '--unlearn_loss=group_marginal averages over the facts of a relation'
          f' in one phrasing, but {name[1][0]!r} has a single question in'
          f' phrasing {name[1][1]!r} (the part of its id after the last /).'
          ' Wanted the same ending for ids of equally worded prompts. Correct'
          ' the ids, add facts, raise --unlearn_forget_pool, or use'
          ' --unlearn_loss=prior.')
    table.append(probabilities(np.array(members[name])).mean(0))
  return (np.stack(table).astype(np.float32),
          np.array([row_of[cell] for cell in cells]))


def choice_targets(
    facts: Sequence[str], right: Sequence[int],
    choices: Sequence[Sequence[int]]) -> step_data.Choices:
  """A uniform target over the wrong choices of each fact.

  Choices are told apart by their first tokens; a wrong choice with the right
  answer's first token is dropped.

  Args:
    facts: fact of each sequence.
    right: first token of the right answer of each sequence.
    choices: first tokens of all choices of each sequence.

  Returns:
    One row for each sequence, with the right answer's token first.

  Raises:
    ValueError: all choices of a fact have the same first token.
  """
  pools: dict[tuple[str, int], set[int]] = {}
  for fact, token, some in zip(facts, right, choices):
    pools.setdefault((fact, token), set()).update(some)
  rows = []
  for fact, token in zip(facts, right):
    wrong = pools[fact, token] - {token}
    if not wrong:
      raise ValueError(
          '--unlearn_choice_kl_weight needs wrong choices whose first token'
          f' differs from the right answer\'s, but {fact!r} has none. Set it to'
          ' 0, or give the fact other choices.')
    rows.append([token, *sorted(wrong)])
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  target = np.zeros(tokens.shape, np.float32)
  for i, row in enumerate(rows):
    tokens[i, :len(row)] = row
    target[i, 1:len(row)] = 1 / (len(row) - 1)
  lengths = np.array([len(row) for row in rows])
  valid = np.arange(tokens.shape[1]) < lengths[:, None]
  return step_data.Choices(tokens, target, valid)
