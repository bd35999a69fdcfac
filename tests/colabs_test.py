"""The notebooks run from top to bottom."""

import ast
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import nbclient
import nbformat

_COLABS = pathlib.Path(__file__).parent.parent / 'colabs'
# How many times fewer bytes the last cell must have arrived at.
_SMALLER = {
  'quickstart.ipynb': 20,
  'quantization.ipynb': 6.5,
  'pruning.ipynb': 6,
  'distillation.ipynb': 250,
}


class ColabsTest(parameterized.TestCase):
  @parameterized.parameters(
    *((p.name,) for p in sorted(_COLABS.glob('*.ipynb')))
  )
  def test_runs(self, name):
    notebook = nbformat.read(_COLABS / name, as_version=4)
    done = nbclient.NotebookClient(
      notebook, timeout=600, resources={'metadata': {'path': str(_COLABS)}}
    ).execute()
    last = [c for c in done.cells if c.cell_type == 'code'][-1]
    accuracy, _, ratio = eval(last.outputs[-1]['data']['text/plain'])  # noqa: S307
    self.assertGreater(accuracy, 0.9)
    self.assertGreater(ratio, _SMALLER[name])

  @parameterized.parameters(
    *((p.name,) for p in sorted(_COLABS.glob('*.ipynb')))
  )
  def test_is_kept_with_what_it_printed(self, name):
    notebook = nbformat.read(_COLABS / name, as_version=4)
    nbformat.validate(notebook)
    code = [c for c in notebook.cells if c.cell_type == 'code']
    self.assertTrue(all(c.execution_count for c in code))
    # A cell that ends in an expression or prints has something below it.
    for cell in code:
      last = cell.source.splitlines()[-1]
      said = 'print(' in cell.source or 'plt.show' in last
      if said or isinstance(ast.parse(cell.source).body[-1], ast.Expr):
        self.assertNotEmpty(cell.outputs, cell.source)
    outputs = [o for c in code for o in c.outputs]
    self.assertNotIn('error', [o.output_type for o in outputs])
    self.assertNotIn('stderr', [o.get('name') for o in outputs])
    text = json.dumps(outputs)
    for place in ('/tmp/', '/home/', '/root/', '/work/', 'site-packages'):
      self.assertNotIn(place, text)
    self.assertLess(len(text), 200_000)  # bytes, its pictures included

  def test_the_readme_lists_them(self):
    readme = (_COLABS.parent / 'README.md').read_text()
    for path in _COLABS.glob('*.ipynb'):
      self.assertIn(f'`{path.name}`', readme)


if __name__ == '__main__':
  absltest.main()
