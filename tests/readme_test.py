"""The examples of README and CONTRIBUTING run and print what they say."""

import contextlib
import io
import pathlib
import re
import sys
import types
import warnings

from absl.testing import absltest

from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.train import distil
from jaxopt_compress.train import fields
from jaxopt_compress.train import options

_ROOT = pathlib.Path(__file__).parent.parent


def blocks_of(name):
  text = (_ROOT / name).read_text()
  return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


def run(name, blocks):
  """Runs the blocks in one namespace: (names, printed lines, expected lines)."""
  # Dataclasses look their module up.
  module = types.ModuleType(pathlib.Path(name).stem.lower())
  sys.modules[module.__name__] = module
  printed = io.StringIO()
  for block in blocks:
    with contextlib.redirect_stdout(printed):
      exec(compile(block, name, 'exec'), module.__dict__)  # noqa: S102
  said = [
    line.rsplit('# ', 1)[1]
    for block in blocks
    for line in block.splitlines()
    if line.startswith('print(')
  ]
  return module.__dict__, printed.getvalue().splitlines(), said


class ReadmeTest(absltest.TestCase):
  def test_contributing(self):
    blocks = blocks_of('CONTRIBUTING.md')
    self.assertLen(blocks, 2)
    _, printed, said = run('CONTRIBUTING.md', blocks)
    self.assertEqual(printed, said)

  def test_readme(self):
    blocks = blocks_of('README.md')
    self.assertGreaterEqual(len(blocks), 4)
    # Said on machines without the CPU kernels.
    warnings.filterwarnings('ignore', 'Nothing is packed')
    names, printed, said = run('README.md', blocks)
    if not native.available():
      said = [line.removesuffix(', packed') for line in said]
    self.assertEqual(printed, said)
    taught = fields.read(options.Stage, 's', {'name': 's'} | names['taught'])
    distil.check('s', taught)
    self.assertEqual(names['pruned']['query']['kernel'].shape, (64, 4, 16))
    zeros = (names['pruned']['query']['kernel'] == 0).mean()
    self.assertAlmostEqual(float(zeros), 0.8, places=2)


if __name__ == '__main__':
  absltest.main()
