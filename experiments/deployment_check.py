"""Does an exported model answer in deployment as the simulator says it does?

  python -m experiments.deployment_check --workdir=W
  python -m experiments.deployment_check --model=DIR \
      --questions_file=FILE.jsonl --out=FOLDER

W is a finished workdir: W/model is loaded by transformers with bitsandbytes in
4 bits and by llama.cpp as quantized GGUF files, both on CPU, and asked the
questions of W/answers.jsonl. Simulator and real engine are put side by side in
deployment.md and deployment.json. Without a workdir any Hugging Face directory
of the Llama family is asked the questions of a file.

Needs the extras `parity` (bitsandbytes) and `llamacpp` (GGUF). Exit status: 0
when no weight differs, NF4, FP4 and the GGUF in float32 give the same answers,
ties aside, and the interval of every other difference of accuracy holds 0,
for GGUF files that of a simulator that rounds activations as llama.cpp does; 3
when not; 2 on bad input. Few questions make wide intervals, which hold 0
easily. Eight schemes took 29 minutes with the quickstart's 1,238 questions, on
one core that others used too; --questions=N asks fewer.
"""

from __future__ import annotations

import logging as std_logging
import os
import pathlib
import sys

from absl import app
from absl import flags

DISAGREES = 3
USER_ERROR = 2


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags; call once before `app.run`."""
  from experiments.deployment import check  # Slow: not for --help of others.
  text = lambda name, doc: flags.DEFINE_string(
      name, '', doc, flag_values=flag_values)
  text('workdir', 'A finished workdir, with model/ and answers.jsonl.')
  text('model', 'A Hugging Face directory, instead of a workdir.')
  text('questions_file', 'Questions (JSONL, see README.md) for --model.')
  text('out', 'Folder of deployment.json and .md; the workdir by default.')
  flags.DEFINE_list(
      'schemes', list(check.DEFAULT),
      f'Some of {", ".join(check.SCHEMES)}. f32 checks the GGUF conversion;'
      ' _bf16 is the kernel that bitsandbytes takes on CPUs with AVX512-BF16.',
      flag_values=flag_values)
  flags.DEFINE_integer(
      'questions', 0, 'Of each split, at most, spread over facts; 0: all.',
      lower_bound=0, flag_values=flag_values)
  flags.DEFINE_bool(
      'chat', False, 'Ask --questions_file through the chat template; a run\'s'
      ' questions are asked as the run did.', flag_values=flag_values)
  flags.DEFINE_bool(
      'keep_gguf', False, 'Leave the GGUF files in OUT/gguf.',
      flag_values=flag_values)


def _parse(argv: list[str]) -> list[str]:
  """Parses flags; exits on one that absl does not take."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    what = str(error).removeprefix('ERROR:: ').rstrip('.')
    print(f'deployment_check: {what}. See --help.', file=sys.stderr)
    sys.exit(USER_ERROR)


def _places(values: flags.FlagValues) -> tuple[pathlib.Path, pathlib.Path]:
  """The model's folder and the output's, checked."""
  bare = bool(values.model or values.questions_file)
  if bool(values.workdir) == bare:
    raise ValueError(
        'Wanted either --workdir, or --model with --questions_file and --out.')
  if bare and not (values.model and values.questions_file and values.out):
    raise ValueError(
        '--model, --questions_file and --out go together; wanted all three.')
  if values.chat and not bare:
    raise ValueError('--chat is for --questions_file: the questions of a'
                     ' workdir are asked as its run did. Leave it out.')
  folder = pathlib.Path(values.model or os.path.join(values.workdir, 'model'))
  if not folder.is_dir():
    raise ValueError(
        f'{folder} is no folder; wanted a Hugging Face directory. Give a'
        ' finished workdir, or a model\'s directory.')
  return folder, pathlib.Path(values.out or values.workdir)


def _quiet() -> None:
  """Keeps other packages from telling what they do."""
  from transformers.utils import logging as transformers_logging
  transformers_logging.disable_progress_bar()
  std_logging.getLogger('gguf').setLevel(std_logging.WARNING)


def check(values: flags.FlagValues) -> bool:
  """Runs the check, prints and writes it; returns whether all agree.

  Raises:
    ValueError: bad input, or missing packages.
  """
  from experiments.deployment import check as check_lib
  from experiments.deployment import items as items_lib
  from experiments.deployment import tables
  from mansu_jax.runtime import files

  folder, out = _places(values)
  check_lib.check_schemes(values.schemes)
  items = (items_lib.read_questions(
      values.questions_file, chat=values.chat) if values.model
           else items_lib.read_answers(
               pathlib.Path(values.workdir) / 'answers.jsonl'))
  out.mkdir(parents=True, exist_ok=True)
  _quiet()
  for result in check_lib.run(
      folder, items.thin(values.questions), values.schemes, out,
      values.keep_gguf):
    *_, last = result['schemes']
    print(tables.line(last, result['schemes'][last]), flush=True)
    files.write_json(out / 'deployment.json', result)
    page = tables.render(result)
    files.write_text(out / 'deployment.md', page)
  print(f'\n{page}\nwritten: {out / "deployment.md"} and deployment.json')
  return result['agrees']


def main(
    argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Checks; returns the exit status."""
  try:
    if len(argv) > 1:
      raise ValueError(f'Positional arguments {argv[1:]} are not used; write'
                       ' flags as --name=value.')
    return 0 if check(flag_values) else DISAGREES
  except ValueError as error:
    print(f'deployment_check: {error}', file=sys.stderr)
  except OSError as error:  # A file that vanished, no right, a full disk.
    what = f'{error.filename}: ' if error.filename else ''
    print(f'deployment_check: {what}{error.strerror or error}. Check that the'
          ' file can be read or written and that the disk has room.',
          file=sys.stderr)
  return USER_ERROR


if __name__ == '__main__':
  define()
  app.run(main, flags_parser=_parse)
