"""MkDocs hooks: pages from outside docs/, the API reference, and links.

Markdown files link to each other and to code by relative paths, as GitHub shows
them. Here the pages outside docs/ join the site, a link to another page becomes
one within the site, a link from a function's name to its file becomes one to
its reference, and a link to any other file of the repository becomes text.
"""

from __future__ import annotations

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
# Page of the API reference -> the module or package that it documents.
_API = {
    'transforms': 'transforms',
    'quant': 'quant',
    'models': 'models/io',
    'circuits': 'circuits',
    'erasure': 'erasure',
    'statistics': 'statistics',
    'unlearn': 'unlearn',
    'eval': 'eval',
    'data': 'data',
    'config': 'config',
    'flows': 'flows',
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
  for name, path in _API.items():
    files.append(files_lib.File.generated(
        config, f'api/{name}.md', content=_reference(path)))
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


def _reference(path: str) -> str:
  """A page that documents the public modules of a package."""
  files = sorted((_ROOT / 'mansu_jax' / path).rglob('*.py'))
  modules = [_module(file) for file in files if _has_public(file)]
  name = path.replace('/', '.')
  return '\n\n'.join([
      f'# mansu_jax.{name}', *(f'::: {module}' for module in modules)]) + '\n'


def _module(file: pathlib.Path) -> str:
  return '.'.join(file.relative_to(_ROOT).with_suffix('').parts)


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
  if file.suffix == '.py' and symbol and _is_documented(file):
    module = '.'.join(file.with_suffix('').parts)
    return f'[{text}][{module}.{symbol[1]}]'
  return text


def _is_documented(file: pathlib.PurePath) -> bool:
  roots = [pathlib.PurePath('mansu_jax', path) for path in _API.values()]
  return any(file.is_relative_to(root) for root in roots)
