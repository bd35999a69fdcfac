"""The runner, in a process of its own."""

import subprocess
import sys

from absl.testing import absltest
import export_cases
import jax
import numpy as np

from jaxopt_compress import export
from jaxopt_compress.export import run


class RunTest(export_cases.ExportTestCase):
  def setUp(self):
    super().setUp()
    export.save(
      self.folder,
      export_cases.apply,
      export_cases.params(),
      export_cases.inputs(2),
    )

  def test_the_runner_in_a_fresh_process(self):
    x = export_cases.inputs(4)
    np.savez(self.root / 'x.npz', **{'0': x})
    command = [sys.executable, '-m', 'jaxopt_compress.export.run']
    files = [str(self.root / name) for name in ('model', 'x.npz', 'y.npz')]
    subprocess.run(
      [*command, *files], check=True, env=export_cases.environment()
    )
    with np.load(self.root / 'y.npz') as y:
      self.assertEqual(y.files, ['output'])
      expected = jax.jit(export_cases.apply)(export_cases.params(), x)
      np.testing.assert_allclose(y['output'], expected, rtol=1e-6, atol=1e-6)

  def test_the_runner_says_what_is_missing(self):
    np.savez(self.root / 'x.npz', x=export_cases.inputs(2))
    with self.assertRaisesRegex(ValueError, r"lacks \['0'\]; it holds \['x'\]"):
      run.run(self.folder, self.root / 'x.npz', self.root / 'y.npz')
    self.assertFalse((self.root / 'y.npz').exists())

  def test_the_runner_names_inputs_that_it_cannot_read(self):
    path = self.root / 'x.npz'
    np.savez(path, **{'0': export_cases.inputs(2)})
    whole = bytearray(path.read_bytes())
    flipped = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    np.save(self.root / 'x.npy', export_cases.inputs(2))
    array = (self.root / 'x.npy').read_bytes()
    for content in (b'', b'text', whole[:200], flipped, array):
      path.write_bytes(content)
      with self.assertRaisesRegex(ValueError, 'x.npz is no .npz file, or dam'):
        run.run(self.folder, path, self.root / 'y.npz')


if __name__ == '__main__':
  absltest.main()
