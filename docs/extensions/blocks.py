"""Pages of Markdown whose blocks of python run, each page in one process.

A page is an ordinary Markdown file. Its top-level blocks marked `python` become
the cells of a notebook that MyST-NB runs. What `print(...)  # text` says behind
the hash is what the call must print: the site shows what it did print instead.
"""

import ast
import pathlib

from markdown_it import MarkdownIt
from mdit_py_plugins import colon_fence
from mdit_py_plugins import front_matter
import nbformat
from nbformat import v4
from sphinx.util import logging
import yaml

_LOGGER = logging.getLogger(__name__)
_ALSO = ('py', 'py3', 'python3', 'ipython', 'pycon', 'jupyter')
_KERNEL = {'name': 'page', 'display_name': 'Python 3', 'language': 'python'}


def split(source):
  """Code without what its calls of print must print, and the list of that.

  >>> split('print(1 + 1)  # 2')
  ('print(1 + 1)', ['2'])
  >>> split('x = 1  # one')
  ('x = 1  # one', [])
  """
  try:
    calls = [
      n.value
      for n in ast.parse(source).body
      if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
    ]
  except SyntaxError:  # running it says where
    return source, []
  lines, expects = source.split('\n'), []
  for call in calls:
    # Columns count bytes. A call may end lines below its name.
    row, line = call.end_lineno - 1, lines[call.end_lineno - 1].encode()
    code, behind = line[: call.end_col_offset], line[call.end_col_offset :]
    if ast.unparse(call.func) == 'print' and behind.startswith(b'  # '):
      lines[row] = code.decode()
      expects.append(behind[4:].decode())
  return '\n'.join(lines), expects


def _fences(tokens, lines):
  """Blocks of python at the top level. What looks like one is refused elsewhere."""
  for token in tokens:
    if token.type not in ('fence', 'colon_fence'):
      continue
    word, *_ = [*token.info.lower().split(), '']
    inside = [x.strip() for x in token.content.splitlines()]
    if word == 'python' and not token.level:
      yield token
    elif word in ('python', *_ALSO) or (
      '```python' in inside and word not in ('markdown', 'text')
    ):
      raise ValueError(
        f'Line {token.map[0] + 1}, {lines[token.map[0]].strip()!r}: this python would'
        ' not run. Mark it `python` and put it at the left margin, outside of lists'
        ' and directives; or mark it {code-block} if it cannot run here.'
      )


def read(text):
  """The notebook of a page: Markdown cells, and cells of code that run.

  Args:
    text: str, the page.
  Returns:
    A notebook (nbformat 4). Its `source_map` has the line of each cell, for
    warnings; `expects` of a cell's metadata are the lines that it must print.
  """
  lines = text.splitlines()
  parser = MarkdownIt().use(front_matter.front_matter_plugin)
  tokens = parser.use(colon_fence.colon_fence_plugin).parse(text)
  cells, starts, done = [], [], 0
  metadata = {'kernelspec': _KERNEL}
  if tokens and tokens[0].type == 'front_matter':
    metadata.update(yaml.safe_load(tokens[0].content) or {})
    done = tokens[0].map[1]

  def prose(end):
    if done < end:
      cells.append(v4.new_markdown_cell('\n'.join(lines[done:end])))
      starts.append(done)

  for token in _fences(tokens, lines):
    prose(token.map[0])
    source, expects = split(token.content.rstrip('\n'))
    cells.append(v4.new_code_cell(source, metadata={'expects': expects}))
    starts.append(token.map[0])
    done = token.map[1]
  prose(len(lines))
  return v4.new_notebook(
    cells=cells, metadata={**metadata, 'source_map': starts}
  )


def unsaid(cell):
  """What a cell had to print, from the first line that is missing; or []."""
  printed = ''.join(
    o.text for o in cell.outputs if o.output_type == 'stream'
  ).splitlines()
  expects = list(cell.metadata.get('expects', []))
  for line in printed:
    if expects and line.strip() == expects[0].strip():
      expects.pop(0)
  return expects


def check(app, doctree):
  """Warns where an executed page printed something else than it says."""
  name = app.env.docname
  path = pathlib.Path(app.env.mystnb_config.output_folder) / f'{name}.ipynb'
  if not app.env.doc2path(name).suffix == '.md' or not path.exists():
    return
  book = nbformat.read(path, as_version=4)
  for cell, start in zip(book.cells, book.metadata['source_map']):
    missing = unsaid(cell) if cell.cell_type == 'code' else []
    if missing:
      outputs = ''.join(o.get('text', '') for o in cell.outputs)
      _LOGGER.warning(
        'the block should print %r, and printed:\n%s',
        missing[0],
        outputs,
        location=(name, start + 1),
      )


def setup(app):
  app.connect('doctree-read', check)
  return {'parallel_read_safe': True, 'parallel_write_safe': True}
