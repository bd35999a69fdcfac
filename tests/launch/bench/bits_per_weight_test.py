"""Bytes of every format by arithmetic, in memory, in files and in checkpoints."""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.export import weights as weights_lib
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import schemes
from jaxopt_compress.train import checkpoint

_ROOT = pathlib.Path(__file__).parents[3]


def _run(code):
  return subprocess.run(
    [sys.executable, '-c', code],
    cwd=_ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
  )


class TableTest(absltest.TestCase):
  def test_sizes_that_nothing_divides(self):
    done = _run(
      'from absl import app; from launch.bench import bits_per_weight as b;'
      "app.run(b.main, ['', '--shape=203,37'])"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    lines = done.stdout.splitlines()
    rows = [r for r in lines if '0.' in r or '/' in r]
    errors = [r for r in rows if '**' in r]
    bits = 4 * len(formats.FORMATS) + len(schemes.PRESETS)
    self.assertLen(rows, bits + 6)
    self.assertLen(errors, 6)

  def test_a_row_that_is_off_fails(self):
    done = _run(
      'from absl import app; from launch.bench import bits_per_weight as b;'
      "b.BITS = {**b.BITS, 'int4': 5}; b.GRANULARITIES = ('channel',); b.MX = ();"
      "app.run(b.main, ['', '--shape=64,8'])"
    )
    self.assertEqual(done.returncode, 1)
    self.assertIn('4 are off: int4 | channel; W4A16', done.stderr)


# One leaf for each dtype of payload, scale and zero point.
SCHEMES = {
  **{name.lower(): s for name, s in schemes.PRESETS.items() if name != 'FP8'},
  'fp8': 'e4m3 tensor',
  'e5m2': 'e5m2',
  'int4_asym': 'int4 g16 asym bfloat16',
  'nf4_asym': 'nf4 g16 asym',
  'binary': 'binary',
  'int3': 'int3',
}


class PayloadsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    w = jax.random.normal(jax.random.key(0), (100, 24))
    cls.tree = jc.quantize(
      {name: w for name in SCHEMES}, list(SCHEMES.items()), uses=in_out.IN_OUT
    )

  def assert_same(self, got):
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(self.tree))
    for a, b in zip(
      jax.tree.leaves(got), jax.tree.leaves(self.tree), strict=True
    ):
      self.assertEqual((a.shape, a.dtype), (b.shape, b.dtype))
      self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes())

  def test_every_dtype_is_there(self):
    dtypes = {str(x.dtype) for x in jax.tree.leaves(self.tree)}
    self.assertEqual(
      dtypes,
      {
        'int8', 'uint8', 'float8_e4m3fn', 'float8_e5m2', 'float8_e8m0fnu',
        'bfloat16', 'float32',
      },
    )  # fmt: skip

  def test_weights_file(self):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'weights')
      jc.save(path, self.tree)
      self.assert_same(jc.load(path))

  def test_checkpoint(self):
    template = jax.eval_shape(lambda: self.tree)
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'checkpoint')
      checkpoint.save(path, self.tree, {})
      self.assert_same(checkpoint.restore(path, template, {}))

  def test_a_checkpoint_is_no_larger_than_memory(self):
    w = jax.random.normal(jax.random.key(0), (1024, 256))
    tree = jc.quantize({'w': w}, [('w', 'W4A16')], uses=in_out.IN_OUT)
    with tempfile.TemporaryDirectory() as folder:
      checkpoint.save(os.path.join(folder, 'checkpoint'), tree, {})
      size = sum(
        f.stat().st_size for f in pathlib.Path(folder).rglob('*') if f.is_file()
      )
    # Orbax compresses; its indices and our manifest take some kilobytes.
    self.assertLess(size, jc.nbytes(tree) + 8192)

  def test_what_was_restored_multiplies(self):
    x = jnp.ones((2, 100))
    weights, rebuild = weights_lib.flatten(self.tree)
    for name, q in rebuild(weights).items():
      want = jc.lift(jnp.matmul)(x, self.tree[name])
      got = jc.lift(jnp.matmul)(x, jax.tree.map(jnp.asarray, q))
      np.testing.assert_array_equal(got, want)


if __name__ == '__main__':
  absltest.main()
