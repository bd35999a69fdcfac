"""Leaves at the boundary of `jax.export` programs, in flax's msgpack and in Orbax."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import contract_leaves
from flax import serialization
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

import jaxopt_compress as jc
from jaxopt_compress.core import array

W = jax.random.normal(jax.random.key(0), (32, 16))
X = jnp.ones((2, 32))


def apply(p, x):
  return x @ p['w']


USES = jc.uses(apply)({'w': W}, X)


def quantized(words, w=W):
  return jc.quantize({'w': w}, [('w', words)], USES)


def check_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert isinstance(a, jax.Array) and a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@jc.export.register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Factored(array.CompressedArray):
  """A leaf of a user."""

  x: jax.Array
  factor: float = dataclasses.field(default=1.0, metadata={'static': True})

  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: self.x.dtype)

  def materialize(self):
    return self.x * self.factor


class ExportTest(parameterized.TestCase):
  @parameterized.parameters(*contract_leaves.LEAVES)
  def test_programs_take_leaves(self, name):
    tree = jc.unpack(contract_leaves.LEAVES[name].compress({'w': W}, USES))
    program = jax.jit(jc.lift(apply))
    made = export.export(program)(tree, X)
    again = export.deserialize(made.serialize())
    self.assertEqual(again.in_tree, made.in_tree)
    np.testing.assert_array_equal(again.call(tree, X), program(tree, X))

  def test_leaves_as_results(self):
    made = export.export(jax.jit(lambda w: quantized('int4 g16', w)))(W)
    (leaf,) = export.deserialize(made.serialize()).call(W).values()
    self.assertEqual(leaf.describe(), 'int4 g16')

  def test_a_leaf_of_a_user(self):
    tree = {'w': Factored(W, 3.0)}
    made = export.export(jax.jit(jc.lift(apply)))(tree, X)
    y = export.deserialize(made.serialize()).call(tree, X)
    np.testing.assert_allclose(y, 3 * X @ W, rtol=1e-5)
    check_same(
      serialization.from_bytes(tree, serialization.to_bytes(tree)), tree
    )

  def test_other_leaves_are_refused_by_the_program(self):
    made = export.export(jax.jit(jc.lift(apply)))(quantized('int8'), X)
    with self.assertRaisesRegex(ValueError, '(?s)tree.*QArray'):
      made.call(quantized('int4'), X)


class FreshTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path

  def test_another_process(self):
    tree = quantized(jc.W8A8)
    program = jax.jit(jc.lift(apply))
    (self.path / 'p').write_bytes(export.export(program)(tree, X).serialize())
    (self.path / 't').write_bytes(serialization.to_bytes(tree))
    jc.save(self.path / 'net', tree)
    script = """
      import sys, flax.serialization, jax, jax.numpy as jnp, numpy as np
      import jaxopt_compress as jc
      folder = sys.argv[1]
      tree = jc.load(f'{folder}/net')
      program = jax.export.deserialize(bytearray(open(f'{folder}/p', 'rb').read()))
      y = program.call(tree, jnp.ones((2, 32)))
      target = jax.tree.map(jnp.zeros_like, tree)
      tree = flax.serialization.from_bytes(target, open(f'{folder}/t', 'rb').read())
      assert (program.call(tree, jnp.ones((2, 32))) == y).all()
      np.save(f'{folder}/y.npy', y)
    """
    subprocess.run(
      [sys.executable, '-c', textwrap.dedent(script), str(self.path)],
      check=True,
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    )
    np.testing.assert_array_equal(
      np.load(self.path / 'y.npy'), program(tree, X)
    )


class MsgpackTest(parameterized.TestCase):
  @parameterized.parameters(*contract_leaves.LEAVES)
  def test_there_and_back(self, name):
    tree = jc.unpack(contract_leaves.LEAVES[name].compress({'w': W}, USES))
    tree = {'p': [tree], 'n': W}
    content = serialization.to_bytes(tree)
    empty = jax.tree.map(jnp.zeros_like, tree)
    got = serialization.from_bytes(empty, content)
    check_same(got['p'], tree['p'])
    np.testing.assert_array_equal(got['n'], W)

  def test_targets_of_other_leaves(self):
    content = serialization.to_bytes(quantized('int4'))
    for target, message in (
      (quantized('int8'), 'w is <QArray: int8.*another: .*int4'),
      (
        quantized('int4', W[:16]),
        r'w has arrays .*\(8, 16\).*\(16, 16\).* were',
      ),
      (quantized(jc.W8A8), r'w is <QDotArray.*written there is \['),
    ):
      with self.assertRaisesRegex(ValueError, message):
        serialization.from_bytes(target, content)
    with self.assertRaisesRegex(ValueError, 'w is <QArray.*there is ndarray'):
      serialization.from_bytes(
        quantized('int8'), serialization.to_bytes({'w': W})
      )

  def test_packed_leaves_are_refused(self):
    packed = jc.pack(quantized('int8'), USES, target='cpu')
    with self.assertRaisesRegex(ValueError, r'one machine. Give jc.unpack'):
      serialization.to_bytes(packed)

  def test_state_dicts_are_of_arrays_and_one_text(self):
    state = serialization.to_state_dict(quantized('int8'))['w']
    self.assertEqual(json.loads(state['static'])['fields']['format'], 'int8')
    self.assertEqual(state['qvalue'].shape, (32, 16))
    self.assertIsNone(state['zero'])


class OrbaxTest(absltest.TestCase):
  @pytest.fixture(autouse=True)
  def _tmp(self, tmp_path):
    self.path = tmp_path / 'orbax'

  def test_leaves_as_they_are(self):
    tree = {'a': quantized('int4 g16'), 'b': quantized(jc.W8A8), 'c': W}
    ocp.save(self.path, tree)
    check_same(ocp.load(self.path, jax.tree.map(jnp.zeros_like, tree)), tree)


if __name__ == '__main__':
  absltest.main()
