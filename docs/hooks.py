"""MkDocs hooks: pages from outside docs/, the API reference, and links.

Markdown files link to each other and to code by relative paths, as GitHub shows
them. Here the pages outside docs/ join the site, a link to another page becomes
one within the site, a link from a function's name to its file becomes one to
its reference, and a link to any other file of the repository becomes text.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from typing import Any

import griffe
from mkdocs.config import defaults
from mkdocs.structure import files as files_lib
from mkdocs.structure import pages

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Pages from outside docs/: path in the repository -> path in the site.
_PAGES = {
    'README.md': 'index.md',
    'BUILD.md': 'build.md',
    'CHANGELOG.md': 'changelog.md',
    'experiments/RESULTS.md': 'results.md',
    'mansu_jax/data/README.md': 'facts.md',
}
# Page of the API reference -> the packages and modules that it documents. Of a
# package whose __init__.py exports names, the page has these names only.
_API = {
    'transforms': ('transforms',),
    'quant': ('quant',),
    'models': (
        'models/decoder.py', 'models/config.py', 'models/io/loading.py',
        'models/io/hf_io.py', 'models/io/gguf_writer.py'),
    'circuits': ('circuits',),
    'erasure': ('erasure',),
    'statistics': ('statistics',),
    'unlearn': ('unlearn',),
    'eval': ('eval',),
    'attacks': ('attacks',),
    'data': ('data',),
    'config': ('config',),
    'flows': ('flows',),
    'deployment': (
        'deployment/check.py', 'deployment/relearn.py',
        'deployment/relearning_attack.py',
        'deployment/relearning_records.py'),
    'report': ('report/table.py',),
}
_LINK = re.compile(r'(?<!!)\[([^\]]*)\]\(([^)\s]+)\)', re.DOTALL)
_FENCE = re.compile(r'(```.*?```)', re.DOTALL)


class ExampleSections(griffe.Extension):
  """Has docstrings' `Example:` sections rendered as code."""

  def on_object(self, *, obj: griffe.Object, **unused: Any) -> None:
    if obj.docstring:
      obj.docstring.value = re.sub(
          r'^Example:$', 'Examples:', obj.docstring.value, flags=re.M)


def on_files(
    files: files_lib.Files, config: defaults.MkDocsConfig
) -> files_lib.Files:
  """Adds the pages that are not files of docs/."""
  for source, name in _PAGES.items():
    files.append(files_lib.File.generated(
        config, name, content=(_ROOT / source).read_text(encoding='utf-8')))
  for name in _API:
    files.append(files_lib.File.generated(
        config, f'api/{name}.md', content=_reference(name)))
  return files


def on_page_markdown(
    markdown: str, page: pages.Page, **unused: Any) -> str:
  """Adapts the links of a page, outside fenced code."""
  name = page.file.src_uri
  sources = {site: source for source, site in _PAGES.items()}
  folder = pathlib.PurePosixPath(sources.get(name, f'docs/{name}')).parent
  parts = _FENCE.split(markdown)
  parts[::2] = [
      _LINK.sub(lambda m: _adapt(m, folder), part) for part in parts[::2]]
  return ''.join(parts).replace('](docs/', '](')  # Images of README.md.


def _reference(page: str) -> str:
  """A page of the API reference, as Markdown."""
  return '\n\n'.join([
      f'# mansu_jax.{page}', *(f'::: {name}' for name in _documented(page))
  ]) + '\n'


@functools.cache
def _documented(page: str) -> list[str]:
  """Full names of the modules, functions and classes of a page."""
  out = []
  for path in _API[page]:
    root = _ROOT / 'mansu_jax' / path
    files = [root] if root.is_file() else sorted(root.rglob('*.py'))
    out += _exports(root) or [_module(f) for f in files if _has_public(f)]
  return out


def _exports(package: pathlib.Path) -> list[str]:
  """Full names that the __init__.py of a package imports; [] without any.

  Constants are left out, because they have no docstring.
  """
  init = package / '__init__.py'
  if not init.exists():
    return []
  return [
      f'{node.module}.{alias.name}'
      for node in ast.walk(ast.parse(init.read_text(encoding='utf-8')))
      if isinstance(node, ast.ImportFrom) for alias in node.names
      if node.module.startswith('mansu_jax') and not alias.name.isupper()]


def _module(file: pathlib.PurePath) -> str:
  if file.is_absolute():
    file = file.relative_to(_ROOT)
  return '.'.join(file.with_suffix('').parts)


def _has_public(file: pathlib.Path) -> bool:
  return file.name != '__init__.py' and bool(re.search(
      r'^(def|class) [A-Za-z]', file.read_text(encoding='utf-8'), re.M))


def _adapt(link: re.Match[str], folder: pathlib.PurePosixPath) -> str:
  """One link of a page that lies in `folder` of the repository."""
  text, target = link.groups()
  path, _, anchor = target.partition('#')
  if not path or '://' in target:
    return link.group()
  file = (_ROOT / folder / path).resolve().relative_to(_ROOT)
  name = file.as_posix()
  if name in _PAGES or name.startswith('docs/'):
    site = _PAGES.get(name, name.removeprefix('docs/'))
    return f'[{text}]({site}{"#" + anchor if anchor else ""})'
  symbol = re.fullmatch(r'`(\w+)`', text)
  if file.suffix == '.py' and symbol:
    module = _module(file)
    if _is_documented(module, symbol[1]):
      return f'[{text}][{module}.{symbol[1]}]'
  return text


def _is_documented(module: str, symbol: str) -> bool:
  names = {name for page in _API for name in _documented(page)}
  return bool(names & {module, f'{module}.{symbol}'})
