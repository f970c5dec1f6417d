"""Checks that an exported model answers in deployment as in the simulator.

  python -m mansu_jax.deployment.check --workdir=W
  python -m mansu_jax.deployment.check --model=DIR \\
      --questions_file=FILE.jsonl --out=FOLDER

W is a finished workdir. The check loads W/model in transformers with 4-bit
bitsandbytes and in llama.cpp as quantized GGUF files, both on CPU. It asks them
the questions of W/answers.jsonl, and writes simulated and real answers to
deployment.md and deployment.json. Without a workdir, it asks any Hugging Face
directory the questions of a file.

bitsandbytes needs the extra `parity`, GGUF the extra `llamacpp` and a model of
the Llama family.

Exit status: 0 if simulator and engines agree, 3 if not, 2 on bad input. They
agree if no weight differs, if NF4, FP4 and the float32 GGUF file give the same
answers except for ties, and if the interval of every other accuracy difference
contains 0. For quantized GGUF files, this difference is from a simulator that
rounds activations as llama.cpp does. Few questions give wide intervals, which
contain 0 easily. Seven schemes took 22 minutes for 1,168 of the quickstart's
questions, on one busy core; --questions=N asks at most N of each kind.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import functools
import logging as std_logging
import os
import pathlib

from absl import app
from absl import flags

from mansu_jax.deployment import command_line
from mansu_jax.deployment import items as items_lib
from mansu_jax.deployment import runner
from mansu_jax.deployment import schemes
from mansu_jax.deployment import tables
from mansu_jax.runtime import files

DISAGREES = 3  # Exit status.
_NAME = 'mansu_jax.deployment.check'


def define(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags; call once before `app.run`."""
  text = lambda name, doc: flags.DEFINE_string(
      name, '', doc, flag_values=flag_values)
  text('workdir', 'Finished workdir, with model/ and answers.jsonl.')
  text('model', 'Hugging Face directory, instead of a workdir.')
  text('questions_file', 'JSONL file of questions for --model, in the format of'
       ' docs/data.md.')
  text('out', 'Folder for deployment.json and deployment.md; default: the'
       ' workdir.')
  flags.DEFINE_list(
      'schemes', list(schemes.DEFAULT),
      f'Some of {", ".join(schemes.ALL)}. f32 checks the GGUF conversion;'
      ' _bf16 is the bfloat16 kernel that bitsandbytes uses on CPUs with'
      ' AVX512-BF16.', flag_values=flag_values)
  flags.DEFINE_integer(
      'questions', 0, 'Largest number of questions per split, spread over'
      ' facts; 0: all.', lower_bound=0, flag_values=flag_values)
  flags.DEFINE_bool(
      'chat', False, 'Ask --questions_file through the chat template. The'
      ' questions of a workdir are asked as its run asked them.',
      flag_values=flag_values)
  flags.DEFINE_list(
      'model_ignore_fields', [], 'Unknown fields of the config.json to ignore.'
      ' You vouch that they do not change what the model computes.',
      flag_values=flag_values)
  flags.DEFINE_bool(
      'keep_gguf', False, 'Keep the GGUF files in OUT/gguf.',
      flag_values=flag_values)


def _folders(
    values: flags.FlagValues) -> tuple[pathlib.Path, pathlib.Path]:
  """Checks the flags; returns the model's folder and the output's."""
  has_model = bool(values.model or values.questions_file)
  if bool(values.workdir) == has_model:
    raise ValueError(
        'Wanted either --workdir, or --model with --questions_file and --out.')
  if has_model and not (values.model and values.questions_file and values.out):
    raise ValueError(
        '--model, --questions_file and --out go together; wanted all three.')
  if values.chat and not has_model:
    raise ValueError(
        '--chat applies to --questions_file; the questions of a workdir are'
        ' asked as its run asked them. Leave --chat out.')
  folder = pathlib.Path(values.model or os.path.join(values.workdir, 'model'))
  if not folder.is_dir():
    raise ValueError(
        f'{folder} is not a folder; wanted a Hugging Face directory. Give a'
        ' finished workdir, or a model\'s directory.')
  return folder, pathlib.Path(values.out or values.workdir)


def _silence_packages() -> None:
  """Turns off progress bars and informational logs of other packages."""
  # pylint: disable-next=g-import-not-at-top
  from transformers.utils import logging as transformers_logging
  transformers_logging.disable_progress_bar()
  std_logging.getLogger('gguf').setLevel(std_logging.WARNING)


@contextlib.contextmanager
def _made(folder: pathlib.Path) -> Iterator[None]:
  """Makes a folder, and takes it back if nothing was written into it."""
  new = not folder.exists()
  folder.mkdir(parents=True, exist_ok=True)
  try:
    yield
  finally:
    if new and not any(folder.iterdir()):
      folder.rmdir()


def check(values: flags.FlagValues) -> bool:
  """Runs the check, prints the result and writes it after each scheme.

  Args:
    values: Parsed flags.

  Returns:
    Whether simulator and engines agree.

  Raises:
    ValueError: Bad input or missing packages.
  """
  folder, out = _folders(values)
  runner.check_schemes(values.schemes)
  if values.model:
    items = items_lib.read_questions(values.questions_file, chat=values.chat)
  else:
    items = items_lib.read_answers(
        pathlib.Path(values.workdir) / 'answers.jsonl')
  runner.check_model(folder, values.schemes, values.model_ignore_fields)
  _silence_packages()
  with _made(out):
    for result in runner.run(
        folder, items.subsample(values.questions), values.schemes, out,
        values.keep_gguf, values.model_ignore_fields):
      *_, last = result['schemes']
      print(tables.line(last, result['schemes'][last]), flush=True)
      files.write_json(out / 'deployment.json', result)
      page = tables.render(result)
      files.write_text(out / 'deployment.md', page)
  print(f'\n{page}\nwritten: {out / "deployment.md"} and deployment.json')
  return result['agrees']


def main(
    argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> int:
  """Runs the check; returns the exit status."""
  return command_line.run(
      _NAME, argv, lambda: 0 if check(flag_values) else DISAGREES)


if __name__ == '__main__':
  define()
  app.run(main, flags_parser=functools.partial(
      command_line.parse, _NAME, flags.FLAGS))
