"""The gallery: notebooks with the pictures they drew, and the experiments.

Each says itself what it claims and what it costs: a notebook in its first cell, a
config in its header. The pages are written from there before Sphinx reads any.
"""

import ast
import base64
import pathlib
import re
from typing import NamedTuple

import nbformat

_ROOT = pathlib.Path(__file__).parents[2]


class Header(NamedTuple):
  """What a notebook or a config says of itself; a notebook has no command."""

  title: str
  claim: str
  cost: str
  command: str
  rest: str


def header(text, name):
  """Reads `Claim:`, `Cost:` and `Command:`, each with the lines indented below.

  Args:
    text: str, of which the first line is the title.
    name: of whom it is, for errors.

  Raises:
    ValueError: there is no claim or no cost.

  >>> header('# A title.\\nClaim: one\\n  two\\nCost: little\\nMore.', 'x')
  Header(title='A title', claim='one\\ntwo', cost='little', command='', rest='More.')
  """
  title, *lines = text.strip().splitlines()
  parts, into = {'Claim': [], 'Cost': [], 'Command': [], 'rest': []}, 'rest'
  for line in lines:
    word, colon, said = line.partition(': ')
    if colon and word in parts:
      into, line = word, said
    elif not line.startswith('  '):
      into = 'rest'
    parts[into].append(line if into == 'rest' else line.removeprefix('  '))
  for word in ('Claim', 'Cost'):
    if not parts[word]:
      raise ValueError(f'{name} says no "{word}: ..." in its header.')
  texts = ('\n'.join(part).strip() for part in parts.values())
  return Header(title.lstrip('# ').rstrip('.'), *texts)


def prose(text):
  """Text of a header as Markdown: aligned lines are a table, flags are code."""
  lines, table = [], False
  for line in text.splitlines():
    aligned = bool(re.match(r'  +\S.*\S  +\S', line))
    if aligned != table:
      lines.append('```text' if aligned else '```')
    table = aligned
    lines.append(line)
  text = '\n'.join([*lines, *(['```'] if table else [])])
  return re.sub(r'(?<![`\w-])(--[\w.]+=?[^\s,;`]*)', r'`\1`', text)


def picture(book, name):
  """The first picture that a notebook was kept with, as the bytes of a PNG."""
  for cell in book.cells:
    for output in cell.get('outputs', []):
      if 'image/png' in output.get('data', {}):
        return base64.b64decode(output.data['image/png'])
  raise ValueError(f'{name} has no picture: run it, and keep its outputs.')


def _card(path, said):
  return f"""
:::{{grid-item-card}} {said.title}
:img-top: {path.stem}.png
:link: {path.stem}
:link-type: doc
*Claim*: {prose(said.claim)}

*Cost*: {said.cost}
:::
"""


def _experiment(path, said):
  command, _, more = said.command.partition('\n')
  return f"""
## {path.name}

**{said.title}.**

*Claim*: {prose(said.claim)}

```sh
{command}
```

{prose(more)}

*Cost*: {said.cost}

{prose(said.rest)}
"""


_PAGE = """# Gallery

Notebooks, with what they drew when they were run last, and [the experiments of the main job](experiments.md).

::::{{grid}} 1 1 2 2
:gutter: 3
{cards}
::::

```{{toctree}}
:hidden:

{names}
experiments
```
"""
_EXPERIMENTS = """# Experiments

Each file of `configs` is a small paper: what it claims, what it costs, and the command that runs it.

| | | cost |
|---|---|---|
{rows}
{sections}"""


def write(folder):
  """Writes the pages and thumbnails of the gallery into a folder."""
  folder.mkdir(exist_ok=True)
  notebooks = sorted((_ROOT / 'colabs').glob('*.ipynb'))
  cards = []
  for path in notebooks:
    book = nbformat.read(path, as_version=4)
    said = header(book.cells[0].source, path.name)
    cards.append(_card(path, said))
    _update(folder / f'{path.stem}.png', picture(book, path.name))
    _update(folder / path.name, path.read_bytes())
  names = '\n'.join(path.stem for path in notebooks)
  page = _PAGE.format(cards=''.join(cards), names=names)
  _update(folder / 'index.md', page.encode())

  configs = {}
  for path in sorted((_ROOT / 'configs').glob('*.py')):
    text = ast.get_docstring(ast.parse(path.read_text()))
    configs[path] = header(text, path.name)
  rows = ''.join(
    f'| [{p.stem}](#{p.stem}py) | {said.title} | {" ".join(said.cost.split())} |\n'
    for p, said in configs.items()
  )
  sections = ''.join(_experiment(*item) for item in configs.items())
  text = _EXPERIMENTS.format(rows=rows, sections=sections)
  _update(folder / 'experiments.md', text.encode())


def _update(path, data):
  """Leaves a file that would not change as it is, so that it is not read again."""
  if not path.exists() or path.read_bytes() != data:
    path.write_bytes(data)


def setup(app):
  write(pathlib.Path(app.srcdir) / 'gallery')
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
