"""Pages of the site: which blocks run, and what they must print."""

import ast
import doctest
import json
import pathlib
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import blocks
import nbformat

from jaxopt_compress import kernels
from jaxopt_compress.kernels.cpu import native

_PAGE = """---
orphan: true
---
# Title

```python
x = 1  # one
print(x, x)  # 1 1
print(x)
```
Between.
```text
not code
```
````markdown
```python
a page that is shown
```
````
```python
print(x + 1)  # 2
```
"""


class BlocksTest(parameterized.TestCase):
  def test_doctests(self):
    self.assertEqual(doctest.testmod(blocks).failed, 0)

  def test_read(self):
    book = blocks.read(_PAGE)
    nbformat.validate(book)
    kinds = [cell.cell_type for cell in book.cells]
    self.assertEqual(kinds, ['markdown', 'code', 'markdown', 'code'])
    _, first, between, second = book.cells
    self.assertEqual(first.source, 'x = 1  # one\nprint(x, x)\nprint(x)')
    self.assertEqual(first.metadata['expects'], ['1 1'])
    self.assertEqual(second.metadata['expects'], ['2'])
    self.assertIn('a page that is shown', between.source)
    self.assertTrue(book.metadata['orphan'])
    # Each cell begins where the page has it, as warnings name that line.
    lines = _PAGE.splitlines()
    starts = [lines[i] for i in book.metadata['source_map']]
    self.assertEqual(starts, ['# Title', '```python', 'Between.', '```python'])

  @parameterized.parameters(
    ('print(1)  # 1', 'print(1)', ['1']),
    ('print(\n  "é", 2\n)  # é 2', 'print(\n  "é", 2\n)', ['é 2']),
    ('print("  # ")', 'print("  # ")', []),
    ('print(1,  # one\n)', 'print(1,  # one\n)', []),
    ('if x:\n  print(1)  # 1', 'if x:\n  print(1)  # 1', []),
    ('print(  # 1', 'print(  # 1', []),
  )
  def test_split(self, block, code, expects):
    self.assertEqual(blocks.split(block), (code, expects))

  @parameterized.parameters(
    ':::{tip}\n```python\nx = 1\n```\n:::\n',
    '````{tab-item} one\n```python\nx = 1\n```\n````\n',
    '- in a list\n\n  ```python\n  x = 1\n  ```\n',
    '```py\nx = 1\n```\n',
  )
  def test_a_block_that_would_not_run(self, page):
    with self.assertRaisesRegex(ValueError, 'would not run'):
      blocks.read(page)

  @parameterized.parameters(
    (['1 1', '2'], '1 1\n2\n', []),
    (['1 1'], 'before\n  1 1\nbehind', []),
    (['2', '1 1'], '1 1\n2\n', ['1 1']),
    (['3'], '', ['3']),
  )
  def test_unsaid(self, expects, text, missing):
    cell = nbformat.v4.new_code_cell('', metadata={'expects': expects})
    cell.outputs = [nbformat.v4.new_output('stream', text=text)]
    self.assertEqual(blocks.unsaid(cell), missing)

  def test_pages_quantise_by_uses(self):
    # People copy these calls, and only `uses` tells which axes are reduced.
    calls = []
    for page in pathlib.Path(__file__).parents[2].glob('docs/**/*.md'):
      cells = blocks.read(page.read_text()).cells
      for cell in [c for c in cells if c.cell_type == 'code']:
        for node in ast.walk(ast.parse(cell.source)):
          if isinstance(node, ast.Call):
            words = [k.arg for k in node.keywords]
            calls.append((page.name, ast.unparse(node.func), node.args, words))
    named = [call for call in calls if call[1] == 'jc.quantize']
    self.assertGreater(len(named), 10)
    without = [c for c in named if len(c[2]) < 3 and 'uses' not in c[3]]
    self.assertEmpty(without)

  def test_pages_are_built_without_the_kernels(self):
    folder = pathlib.Path(blocks.__file__).parent / 'kernels/page'
    start = json.loads((folder / 'kernel.json').read_text())
    action, message = start['env']['PYTHONWARNINGS'].split(':')
    with mock.patch.object(native, 'available', lambda: False):
      with self.assertWarnsRegex(UserWarning, message):
        kernels.pack({}, {})
      with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings(action, message)
        kernels.pack({}, {})


if __name__ == '__main__':
  absltest.main()
