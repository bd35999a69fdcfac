"""Exports give what was evaluated, and refuse what would go wrong."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import export
from jaxopt_compress.export import layout
from jaxopt_compress.export import run
from jaxopt_compress.export import stablehlo

# What somebody does who has never heard of this library.
STANDALONE = """
import sys
sys.modules['jaxopt_compress'] = None  # importing it would fail
import numpy as np, jax
from jax import export
from safetensors import numpy as safetensors
folder = sys.argv[1]
program = export.deserialize(open(folder + '/program.stablehlo', 'rb').read())
weights = safetensors.load_file(folder + '/weights.safetensors')
x = np.load(folder + '/../x.npy')
np.save(folder + '/../y.npy', program.call(weights, x))
"""


def params():
  key = jax.random.key(0)
  return {
    'a': {'kernel': jax.random.normal(key, (256, 32)), 'bias': jnp.ones(32)},
    'b': {'kernel': jax.random.normal(key, (32, 5))},
  }


def apply(p, x):
  y = jax.nn.relu(x @ p['a']['kernel'] + p['a']['bias'][None])
  return y @ p['b']['kernel']


def inputs(n):
  return jax.random.normal(jax.random.key(1), (n, 256))


def quantized(scheme):
  rules = [(r'.*/kernel', scheme), (r'.*', None)]
  return jc.quantize(params(), rules, uses=jc.uses(apply)(params(), inputs(2)))


def environment():
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}


class ExportTestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.root = pathlib.Path(folder.name)
    self.folder = self.root / 'model'


class RoundTripTest(ExportTestCase):
  @parameterized.named_parameters(
    dict(testcase_name='float', scheme=None, batch=3),
    dict(testcase_name='W8A16', scheme=jc.W8A16, batch=1),
    dict(testcase_name='W8A8', scheme=jc.W8A8, batch=7),
    dict(testcase_name='W4A16', scheme=jc.W4A16, batch=2),
  )
  def test_the_same_to_the_bit(self, scheme, batch):
    tree, fun = params(), apply
    if scheme is not None:
      tree, fun = quantized(scheme), jc.lift(apply)
    stablehlo.save(self.folder, fun, tree, inputs(2))
    program = stablehlo.load(self.folder)
    x = inputs(batch)
    np.testing.assert_array_equal(program(x), jax.jit(fun)(tree, x))

  def test_a_fresh_process_without_this_library(self):
    tree, fun = quantized(jc.W4A16), jc.lift(apply)
    x = inputs(4)
    export.save(self.folder, fun, tree, x)
    np.save(self.root / 'x.npy', x)
    subprocess.run(
      [sys.executable, '-c', STANDALONE, str(self.folder)],
      check=True,
      env=environment(),
    )
    y = np.load(self.root / 'y.npy')
    np.testing.assert_allclose(y, jax.jit(fun)(tree, x), rtol=1e-6, atol=1e-6)

  def test_the_runner_in_a_fresh_process(self):
    x = inputs(4)
    export.save(self.folder, apply, params(), x)
    np.savez(self.root / 'x.npz', **{'0': x})
    command = [sys.executable, '-m', 'jaxopt_compress.export.run']
    files = [str(self.root / name) for name in ('model', 'x.npz', 'y.npz')]
    subprocess.run([*command, *files], check=True, env=environment())
    with np.load(self.root / 'y.npz') as y:
      self.assertEqual(y.files, ['output'])
      expected = jax.jit(apply)(params(), x)
      np.testing.assert_allclose(y['output'], expected, rtol=1e-6, atol=1e-6)

  def test_trees_of_inputs_and_outputs(self):
    def fun(p, batch, shift):
      y = batch['x'] * p['w'] + shift
      return {'y': y.astype(jnp.bfloat16), 'n': batch['n'].sum()}

    w = {'w': jnp.float32(3.0)}
    batch = {'x': jnp.ones((2,), jnp.bfloat16), 'n': jnp.ones((2,), jnp.int32)}
    manifest = export.save(self.folder, fun, w, batch, jnp.float32(0.5))
    signature = manifest['signature']
    self.assertEqual(
      [(i['name'], i['shape'], i['dtype']) for i in signature['inputs']],
      [
        ('0/n', ['batch'], 'int32'),
        ('0/x', ['batch'], 'bfloat16'),
        ('1', [], 'float32'),
      ],
    )
    self.assertEqual([o['name'] for o in signature['outputs']], ['n', 'y'])
    # bfloat16 travels as float32 where numpy has no format for it.
    np.savez(
      self.root / 'in.npz',
      **{'0/n': np.int32([1, 2, 3]), '0/x': np.ones(3, np.float32)},
      **{'1': np.float32(0.5)},
    )
    run.run(self.folder, self.root / 'in.npz', self.root / 'out.npz')
    with np.load(self.root / 'out.npz') as out:
      np.testing.assert_array_equal(out['n'], 6)
      np.testing.assert_array_equal(out['y'], np.float32([3.5, 3.5, 3.5]))

  def test_fixed_shapes(self):
    def fun(p, x):
      return x * p['w'] if x.shape[0] == 2 else x

    w = {'w': jnp.float32(3.0)}
    manifest = export.save(self.folder, fun, w, np.ones(2), polymorphic=False)
    self.assertEqual(manifest['signature']['inputs'][0]['shape'], [2])
    np.testing.assert_array_equal(
      export.load(self.folder)(np.float32([1, 2])), [3, 6]
    )

  def test_other_platforms_lower_here(self):
    manifest = export.save(
      self.folder, apply, params(), inputs(2), platforms=('cpu', 'cuda', 'tpu')
    )
    self.assertEqual(manifest['platforms'], ['cpu', 'cuda', 'tpu'])
    self.assertEqual(export.load(self.folder)(inputs(3)).shape, (3, 5))

  def test_manifest_names_the_leaves(self):
    tree = quantized(jc.W4A16)
    export.save(
      self.folder, jc.lift(apply), tree, inputs(2), facts={'accuracy': 0.9}
    )
    manifest = json.loads((self.folder / 'manifest.json').read_text())
    leaf = manifest['leaves']['a/kernel']
    self.assertEqual(leaf['format'], 'int4 g128')
    self.assertEqual(leaf['shape'], [256, 32])
    self.assertEqual(leaf['arrays'], ['a/kernel.qvalue', 'a/kernel.scale'])
    self.assertEqual(manifest['facts'], {'accuracy': 0.9})
    self.assertEqual(manifest['jax'], jax.__version__)


class RefusalTest(ExportTestCase):
  def setUp(self):
    super().setUp()
    export.save(self.folder, apply, params(), inputs(2))

  def edit(self, **changes):
    path = self.folder / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

  @parameterized.parameters('program.stablehlo', 'weights.safetensors')
  def test_a_changed_file(self, name):
    content = bytearray((self.folder / name).read_bytes())
    content[-1] ^= 1
    (self.folder / name).write_bytes(content)
    with self.assertRaisesRegex(ValueError, f'{name} is not the file that was'):
      export.load(self.folder)

  @parameterized.parameters('program.stablehlo', 'weights.safetensors')
  def test_a_missing_file(self, name):
    (self.folder / name).unlink()
    with self.assertRaisesRegex(ValueError, f'{name} is missing'):
      export.load(self.folder)

  def test_no_export(self):
    with self.assertRaisesRegex(ValueError, 'is no export'):
      export.load(self.root / 'nothing')

  def test_a_damaged_manifest(self):
    (self.folder / 'manifest.json').write_text('{"format": ')
    with self.assertRaisesRegex(ValueError, 'damaged'):
      export.load(self.folder)

  @parameterized.parameters(
    (dict(jax='99.1.0'), 'Upgrade with `pip install "jax>=99.1.0"`'),
    (dict(calling_convention=999), 'may not read it'),
    (dict(calling_convention=1), 'too long ago'),
    (dict(platforms=['tpu']), "exported for .'tpu'., and this is cpu"),
    (dict(format='other/1'), "format 'other/1'"),
  )
  def test_a_manifest_of_another_world(self, changes, message):
    self.edit(**changes)
    with self.assertRaisesRegex(ValueError, message):
      export.load(self.folder)

  @parameterized.parameters(
    ((np.ones((2, 255), np.float32),), r'float32\[2, 255\].*\[batch, 256\]'),
    ((np.ones((2, 256), np.int32),), r'int32\[2, 256\].*float32'),
    ((np.ones(256, np.float32),), r'float32\[256\]'),
    ((), r'Inputs are \[\].*0'),
  )
  def test_other_inputs(self, args, message):
    program = export.load(self.folder)
    with self.assertRaisesRegex(ValueError, message):
      program(*args)

  def test_batches_of_two_lengths(self):
    export.save(self.folder, lambda p, x, y: x + y, {}, np.ones(2), np.ones(2))
    with self.assertRaisesRegex(ValueError, r"with \{'batch': 3\}"):
      export.load(self.folder)(np.float32([1, 2, 3]), np.float32([1, 2]))

  def test_a_failure_keeps_the_export_that_was_there(self):
    before = (self.folder / 'manifest.json').read_text()

    def fails(p, x):
      raise RuntimeError('no')

    with self.assertRaisesRegex(RuntimeError, 'no'):
      export.save(self.folder, fails, params(), inputs(2))
    with mock.patch.object(layout, 'sync', side_effect=OSError('disk full')):
      with self.assertRaisesRegex(OSError, 'disk full'):
        export.save(self.folder, apply, params(), inputs(2))
    self.assertEqual((self.folder / 'manifest.json').read_text(), before)
    self.assertEqual(os.listdir(self.root), ['model'])
    export.load(self.folder)

  def test_an_export_put_aside_by_a_crash_comes_back(self):
    self.folder.rename(self.root / '.model.old')

    def fails(p, x):
      raise RuntimeError('no')

    with self.assertRaisesRegex(RuntimeError, 'no'):
      export.save(self.folder, fails, params(), inputs(2))
    self.assertEqual(os.listdir(self.root), ['model'])
    export.load(self.folder)

  def test_replaces_an_export_and_nothing_else(self):
    export.save(self.folder, lambda p, x: 2 * x, {}, inputs(2))
    self.assertEqual(export.load(self.folder)(inputs(2)).shape, (2, 256))
    (self.root / 'home').mkdir()
    (self.root / 'home' / 'thesis.tex').touch()
    with self.assertRaisesRegex(ValueError, 'is no export'):
      export.save(self.root / 'home', apply, params(), inputs(2))
    self.assertEqual(os.listdir(self.root / 'home'), ['thesis.tex'])

  def test_leaves_that_are_not_lifted(self):
    unlifted = lambda p, x: [
      jnp.sin(w)
      for w in jax.tree.leaves(p, is_leaf=jc.is_compressed)
      if jc.is_compressed(w)
    ]
    with self.assertRaises(TypeError) as caught:
      export.save(self.folder, unlifted, quantized(jc.W8A16), inputs(2))
    self.assertIn('export jc.lift(fun)', caught.exception.__notes__[0])

  def test_the_runner_says_what_is_missing(self):
    np.savez(self.root / 'x.npz', x=inputs(2))
    with self.assertRaisesRegex(ValueError, r"lacks \['0'\]; it holds \['x'\]"):
      run.run(self.folder, self.root / 'x.npz', self.root / 'y.npz')
    self.assertFalse((self.root / 'y.npz').exists())


if __name__ == '__main__':
  absltest.main()
