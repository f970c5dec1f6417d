"""The attribution pairs of a run: forget, retain and other phrasings."""

from __future__ import annotations

import dataclasses

from absl import logging

from mansu_jax.config import attribution as attribution_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import pair_files
from mansu_jax.stages.circuit import settings as settings_lib

Pairs = list[pairs_lib.AttributionPair]

_RETAIN_PAIRS = 64  # Number of retain pairs if a file gives the forget pairs.
_USES = ('near', 'far')


def forget_pairs(
    settings: settings_lib.Settings, splits: splits_lib.Splits,
    tokenizer: tokenization.Tokenizer | None) -> Pairs:
  """The pairs of `--attribution_pairs_file`, or pairs made from questions.

  Args:
    settings: the file, or the number of pairs to make; seed and chat form.
    splits: questions of the run, by role and use.
    tokenizer: the model's tokenizer; None: the file gives token ids.

  Raises:
    pairs_lib.NoPairs: there are none.
    ValueError: as `pair_files.read_pairs`.
  """
  options = settings.attribution
  if options.pairs_file:
    return read_file(options, tokenizer, chat=settings.chat).pairs
  return pairs_lib.build_pairs(
      splits.forget_train, tokenizer, max_pairs=options.max_pairs,
      seed=settings.seed, others=splits.retain_train, chat=settings.chat)


def retain_pairs(
    settings: settings_lib.Settings, splits: splits_lib.Splits,
    tokenizer: tokenization.Tokenizer) -> Pairs:
  """Pairs made from the retain questions; arguments as for `forget_pairs`.

  Raises:
    pairs_lib.NoPairs: there are no such questions, or they make no pair.
  """
  if not splits.retain_train:
    raise pairs_lib.NoPairs(
        'there are no train questions of the retain set to make pairs from'
        ' (--data_retain).')
  return pairs_lib.build_pairs(
      splits.retain_train, tokenizer,
      max_pairs=settings.attribution.max_pairs or _RETAIN_PAIRS,
      seed=settings.seed, chat=settings.chat)


def read_file(
    options: attribution_config.AttributionConfig,
    tokenizer: tokenization.Tokenizer | None, *, chat: bool
) -> pair_files.PairFile:
  """Reads `--attribution_pairs_file`."""
  return pair_files.read_pairs(
      options.pairs_file, tokenizer, chat=chat,
      skip_unequal=options.skip_unequal)


def describe_file(
    options: attribution_config.AttributionConfig,
    tokenizer: tokenization.Tokenizer | None, *, chat: bool) -> dict[str, int]:
  """`pairs_skipped` and `pairs_as_ids` of a file of pairs; also logs them."""
  path = options.pairs_file
  if not path:
    return {}
  found = read_file(options, tokenizer, chat=chat)
  every = found.skipped + len(found.pairs)
  if found.skipped:
    logging.warning(
        '%s: %d of %d pairs are left out (--attribution_skip_unequal): their'
        ' clean and corrupted prompts differ in token length', path,
        found.skipped, every)
  if found.as_ids and chat:
    logging.warning('%s: %d of %d pairs are token ids, which --data_chat does'
                    ' not change', path, found.as_ids, every)
  return {'pairs_skipped': found.skipped, 'pairs_as_ids': found.as_ids}


def check_chat(
    options: attribution_config.AttributionConfig,
    tokenizer: tokenization.Tokenizer | None) -> None:
  """Raises ValueError if a file holds token ids only, so chat has no effect."""
  found = read_file(options, tokenizer, chat=True)
  if found.as_ids == found.skipped + len(found.pairs):
    raise ValueError(
        f'--data_chat changes nothing: all pairs of {options.pairs_file} are'
        ' token ids already; leave it out, or give the pairs as text.')


def why_none(
    settings: settings_lib.Settings, splits: splits_lib.Splits,
    tokenizer: tokenization.Tokenizer | None, *, cad_pairs: int) -> str:
  """Why an audit has no forget pairs; empty if it has some.

  Args:
    settings: as for `forget_pairs`.
    splits: questions of the run, by role and use.
    tokenizer: the model's tokenizer.
    cad_pairs: number of pairs of CAD; 0: the audit measures no circuit.

  Raises:
    ValueError: as `pair_files.read_pairs`.
  """
  if not cad_pairs:
    return '--eval_cad_pairs=0 skips CAD and AS-NC'
  if not (settings.attribution.pairs_file or splits.forget_train):
    return ('there are no train questions of the forget set to make pairs from'
            ' (--data_forget), and no file of pairs (--attribution_pairs_file)')
  try:
    forget_pairs(settings, splits, tokenizer)
  except pairs_lib.NoPairs as error:
    return str(error)
  return ''


def other_phrasings(
    settings: settings_lib.Settings, splits: splits_lib.Splits,
    tokenizer: tokenization.Tokenizer | None) -> dict[str, Pairs]:
  """Pairs of the forget facts in phrasings without attribution, by use.

  They are made in the same way and number as the pairs of train phrasings.
  Empty if a file gives the pairs, since it has no other phrasings, and if
  nothing will be compared with them.
  """
  options = settings.attribution
  if (settings.for_edit or options.pairs_file or settings.circuit.file
      or not settings.circuit.resamples):
    return {}
  made = {}
  for use, split in zip(_USES, splits_lib.FORGOTTEN):
    questions = [dataclasses.replace(q, use='train')
                 for q in splits.evaluation[split]]
    if not questions:
      continue
    try:
      made[use] = pairs_lib.build_pairs(
          questions, tokenizer, max_pairs=options.max_pairs,
          seed=settings.seed, others=splits.retain_train, chat=settings.chat)
    except pairs_lib.NoPairs:
      continue
  return made
