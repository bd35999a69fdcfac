"""The README's examples run, top to bottom, and print what they say."""

import contextlib
import io
import pathlib
import re
import warnings

from absl.testing import absltest

from jaxopt_compress.kernels.cpu import native

_README = pathlib.Path(__file__).parent.parent / 'README.md'


class ReadmeTest(absltest.TestCase):
  def test_python_blocks(self):
    blocks = re.findall(r'```python\n(.*?)```', _README.read_text(), re.DOTALL)
    self.assertGreaterEqual(len(blocks), 4)
    names, printed = {}, io.StringIO()
    # Said on machines without the CPU kernels.
    warnings.filterwarnings('ignore', 'Nothing is packed')
    for block in blocks:
      with contextlib.redirect_stdout(printed):
        exec(compile(block, str(_README), 'exec'), names)  # noqa: S102
    said = [
      line.rsplit('# ', 1)[1]
      for block in blocks
      for line in block.splitlines()
      if line.startswith('print(')
    ]
    if not native.available():
      said = [line.removesuffix(', packed') for line in said]
    self.assertEqual(printed.getvalue().splitlines(), said)
    self.assertEqual(names['pruned']['query']['kernel'].shape, (64, 4, 16))
    zeros = (names['pruned']['query']['kernel'] == 0).mean()
    self.assertAlmostEqual(float(zeros), 0.8, places=2)


if __name__ == '__main__':
  absltest.main()
