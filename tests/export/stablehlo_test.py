"""Exports give what was evaluated, here and elsewhere."""

import json
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import export_cases
from flax import nnx
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import export
from jaxopt_compress.export import run
from jaxopt_compress.export import stablehlo
from jaxopt_compress.export import trees

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


class RoundTripTest(export_cases.ExportTestCase):
  @parameterized.named_parameters(
    dict(testcase_name='float', scheme=None, batch=3),
    dict(testcase_name='W8A16', scheme=jc.W8A16, batch=1),
    dict(testcase_name='W8A8', scheme=jc.W8A8, batch=7),
    dict(testcase_name='W4A16', scheme=jc.W4A16, batch=2),
  )
  def test_the_same_to_the_bit(self, scheme, batch):
    tree, fun = export_cases.params(), export_cases.apply
    if scheme is not None:
      tree, fun = export_cases.quantized(scheme), jc.lift(export_cases.apply)
    stablehlo.save(self.folder, fun, tree, export_cases.inputs(2))
    program = stablehlo.load(self.folder)
    x = export_cases.inputs(batch)
    np.testing.assert_array_equal(program(x), jax.jit(fun)(tree, x))

  def test_what_is_no_array_is_a_constant(self):
    """Functions and flags of Equinox's modules, keys of those of Flax NNX."""

    def fun(model, x):
      noise = jax.random.normal(model['key'], x.shape)
      return model['act'](x @ model['w']) * model['scale'] + noise

    model = dict(w=jnp.eye(3), act=jnp.tanh, key=jax.random.key(1), scale=2.0)
    for tree in (
      model,
      jc.quantize(model, [('w', 'int8'), ('.*', None)], uses=in_out.IN_OUT),
    ):
      x = jnp.ones((2, 3))
      stablehlo.save(self.folder, jc.lift(fun), tree, x, polymorphic=False)
      program = stablehlo.load(self.folder)
      self.assertEqual({name[0] for name in program.weights}, {'w'})
      np.testing.assert_allclose(program(x), jc.lift(fun)(tree, x), rtol=1e-6)

  def test_a_model_is_no_function(self):
    """Its inputs would be taken for its weights: a program without inputs."""
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, 'fun is a Linear.*lambda m, x'):
      stablehlo.save(self.folder, model, jnp.ones((1, 3)))
    self.assertFalse(self.folder.exists())

  @parameterized.parameters((0.9, 0.16), (0.8, 0.26), (0.5, 0.57))
  def test_pruned_is_smaller(self, zeros, share):
    masked, fun = export_cases.pruned(zeros), jc.lift(export_cases.apply)
    x = export_cases.inputs(3)
    sizes = [
      stablehlo.save(self.folder, fun, tree, x)['files']['weights.safetensors'][
        'bytes'
      ]
      for tree in (export_cases.params(), masked, jc.sparsify(masked)[0])
    ]
    # Masks are no part of an export.
    self.assertAlmostEqual(sizes[1] / sizes[0], 1, delta=0.01)
    self.assertLess(sizes[2] / sizes[0], share)
    program = stablehlo.load(self.folder)
    np.testing.assert_array_equal(
      program(x), jax.jit(fun)(jc.freeze(masked), x)
    )

  def test_the_header_says_what_is_in_it(self):
    tree, _ = jc.sparsify(export_cases.pruned(0.9))
    stablehlo.save(
      self.folder, jc.lift(export_cases.apply), tree, export_cases.inputs(3)
    )
    header = trees.header(self.folder / 'weights.safetensors')
    self.assertEqual(header['format'], 'jaxopt_compress.tree/1')
    found = json.loads(header['tree'])['dict']['a']['dict']
    self.assertEqual(found['bias'], {})
    leaf = json.loads(header['leaves'])[found['kernel']['leaf']]
    self.assertEqual(leaf['leaf'], 'Bitmask')
    jax.tree.map(
      np.testing.assert_array_equal,
      jc.load(self.folder / 'weights.safetensors'),
      tree,
    )

  @parameterized.parameters('dense', 'sparse')
  def test_a_fresh_process_without_this_library(self, kind):
    tree, fun = export_cases.quantized(jc.W4A16), jc.lift(export_cases.apply)
    if kind == 'sparse':
      tree, _ = jc.sparsify(export_cases.pruned(0.9))
    x = export_cases.inputs(4)
    export.save(self.folder, fun, tree, x)
    np.save(self.root / 'x.npy', x)
    subprocess.run(
      [sys.executable, '-c', STANDALONE, str(self.folder)],
      check=True,
      env=export_cases.environment(),
    )
    y = np.load(self.root / 'y.npy')
    np.testing.assert_allclose(y, jax.jit(fun)(tree, x), rtol=1e-6, atol=1e-6)

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

  def test_a_program_that_depends_on_the_length(self):
    def fun(p, x):
      return sum(p * row for row in x)

    said = r'how long the leading axis .*: polymorphic=False'
    with self.assertRaisesRegex(ValueError, said):
      export.save(self.folder, fun, jnp.ones(2), np.ones((3, 2)))
    with self.assertRaisesRegex(TypeError, 'contracting'):
      export.save(self.folder, jnp.dot, np.ones((2, 2)), np.ones((3, 3)))

  def test_a_branch_that_symbols_do_not_take(self):
    def fun(p, x):
      return x @ p if x.shape[0] == 8 else x

    with self.assertRaisesRegex(ValueError, r'length.*polymorphic=False.*8, 2'):
      export.save(self.folder, fun, np.ones((4, 2)), np.ones((8, 4)))

  @parameterized.parameters(
    (lambda: np.ones((3, 2)), r"{'\[0\]': 8, '\[1\]': 3}.*polymorphic=False"),
    (lambda: jax.random.key(0), r'Input \[1\] is a PRNG key.*key_data'),
  )
  def test_inputs_beside_a_batch(self, make, says):
    with self.assertRaisesRegex(ValueError, says):
      export.save(self.folder, lambda p, x, y: x, {}, np.ones((8, 4)), make())

  def test_packed_leaves_that_it_closes_over(self):
    q = jc.quantize({'w': jnp.eye(8)}, [('w', 'int8')], uses=in_out.IN_OUT)
    packed = jc.pack(q, target='cpu', uses=in_out.IN_OUT)
    fun = jc.lift(lambda p, x: x @ p['w'])
    with self.assertRaises(ValueError) as caught:
      export.save(self.folder, lambda p, x: fun(packed, x), {}, np.ones((3, 8)))
    self.assertIn('jc.unpack', caught.exception.__notes__[0])

  def test_other_platforms_lower_here(self):
    manifest = export.save(
      self.folder,
      export_cases.apply,
      export_cases.params(),
      export_cases.inputs(2),
      platforms=('cpu', 'cuda', 'tpu'),
    )
    self.assertEqual(manifest['platforms'], ['cpu', 'cuda', 'tpu'])
    self.assertEqual(
      export.load(self.folder)(export_cases.inputs(3)).shape, (3, 5)
    )

  def test_manifest_names_the_leaves(self):
    tree = export_cases.quantized(jc.W4A16)
    export.save(
      self.folder,
      jc.lift(export_cases.apply),
      tree,
      export_cases.inputs(2),
      facts={'accuracy': 0.9},
    )
    manifest = json.loads((self.folder / 'manifest.json').read_text())
    leaf = manifest['leaves']['a/kernel']
    self.assertEqual(leaf['format'], 'int4 g128')
    self.assertEqual(leaf['shape'], [256, 32])
    self.assertEqual(leaf['arrays'], ['a/kernel.qvalue', 'a/kernel.scale'])
    self.assertEqual(manifest['facts'], {'accuracy': 0.9})
    self.assertEqual(manifest['jax'], jax.__version__)

  def test_leaves_that_are_not_lifted(self):
    unlifted = lambda p, x: [
      jnp.sin(w)
      for w in jax.tree.leaves(p, is_leaf=jc.is_compressed)
      if jc.is_compressed(w)
    ]
    with self.assertRaises(TypeError) as caught:
      export.save(
        self.folder,
        unlifted,
        export_cases.quantized(jc.W8A16),
        export_cases.inputs(2),
      )
    self.assertIn('export jc.lift(fun)', caught.exception.__notes__[0])


if __name__ == '__main__':
  absltest.main()
