"""What leaves can do that arrays can."""

import dataclasses
import operator
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.core import operators


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Negated(array.CompressedArray):
  """Stands for -x; it moves, and is dense in the rest."""

  x: jax.Array
  shape = property(lambda self: self.x.shape)
  dtype = property(lambda self: self.x.dtype)

  def materialize(self):
    return -self.x


@lift.rule(lax.transpose_p, Negated)
def transpose(leaf, *, permutation):
  return Negated(lax.transpose(leaf.x, permutation))


@lift.rule(lax.dot_general_p, Negated)
def dot_general(lhs, rhs, **params):
  at = isinstance(rhs, Negated)
  lhs, rhs = (lhs, rhs.x) if at else (lhs.x, rhs)
  return -lax.dot_general_p.bind(lhs, rhs, **params)


W = jnp.arange(1.0, 7.0).reshape(2, 3)
X = jnp.array([[1.0, -2.0], [0.5, 3.0]])

SAME = {  # on a leaf and on the array that it stands for
  'T': lambda w: w.T,
  'transpose': lambda w: w.transpose(),
  'transpose by axes': lambda w: w.transpose(1, 0),
  'transpose by a tuple': lambda w: w.transpose((1, 0)),
  'swapaxes': lambda w: w.swapaxes(-1, 0),
  'reshape': lambda w: w.reshape(3, 2),
  'reshape by a tuple': lambda w: w.reshape((6,)),
  'reshape with -1': lambda w: w.reshape(-1, 1),
  'squeeze': lambda w: w[:1].squeeze(0),
  'squeeze all': lambda w: w[:1].squeeze(),
  'squeeze by keyword': lambda w: w[:1].squeeze(axis=0),
  'astype': lambda w: w.astype(jnp.bfloat16),
  'an index': lambda w: w[1],
  'a slice': lambda w: w[:, ::2],
  'an array of indices': lambda w: w[np.array([1, 0, 1])],
  'rows': lambda w: jnp.stack([row * 1 for row in w]),
  'neg': operator.neg,
  'add': lambda w: w + 2,
  'radd': lambda w: 2 + w,
  'sub': lambda w: w - X[:, :1],
  'rsub': lambda w: X[:, :1] - w,
  'mul': lambda w: w * 3.0,
  'rmul': lambda w: np.float32(3) * w,
  'truediv': lambda w: w / 4,
  'rtruediv': lambda w: 2 / w,
  'floordiv': lambda w: w // 2,
  'mod': lambda w: w % 2,
  'rmod': lambda w: 5 % w,
  'pow': lambda w: w**2,
  'rpow': lambda w: 2**w,
  'pos': operator.pos,
  'abs': abs,
  'ravel': lambda w: w.ravel(),
  'eq': lambda w: w == -2,
  'ne': lambda w: w != -W,
  'lt': lambda w: w < -2,
  'le': lambda w: w <= X[0, 0],
  'gt': lambda w: w > -2,
  'ge': lambda w: -2 >= w,
  'eq of an array': lambda w: -W == w,
  'eq of leaves': lambda w: w == w.T.T,
  'in': lambda w: jnp.asarray(-2.0 in w[0]),
  'not in': lambda w: jnp.asarray(2.0 in w[0]),
  'sum': sum,
  'max': lambda w: max(w[0]),
  'bool': lambda w: jnp.asarray([bool(w[:1, :1]), bool(w[:1, :1] * 0)]),
  'matmul': lambda w: w @ W.T,
  'rmatmul': lambda w: X @ w,
  'numpy leaves it to the leaf': lambda w: np.asarray(X) @ w,
}


class OperatorsTest(parameterized.TestCase):
  @parameterized.named_parameters((n, n) for n in SAME)
  def test_same_as_of_the_array(self, name):
    leaf = Negated(W)
    got, want = SAME[name](leaf), SAME[name](leaf.materialize())
    chex.assert_trees_all_equal(array.materialize(got), want)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      jax.eval_shape(array.materialize, got), jax.eval_shape(lambda: want)
    )

  @parameterized.named_parameters(
    ('bool', bool, ValueError, 'ambiguous'),
    ('a row among rows', lambda w: 1 in w, ValueError, None),
    ('hash', hash, TypeError, 'unhashable'),
    ('len', lambda w: len(w[0, 0]), TypeError, 'unsized'),
    ('a string', lambda w: w < 'a', TypeError, 'not supported between'),
    ('a list', lambda w: [1.0] + w, TypeError, 'list'),
    ('an equal list', lambda w: w == [1.0], TypeError, 'list'),
    ('an unequal tuple', lambda w: (1.0,) != w, TypeError, 'tuple'),
    ('a method of neither', lambda w: w.wrong(), AttributeError, 'wrong'),
  )
  def test_refused_as_by_the_array(self, f, error, said):
    for w in (Negated(W), W):
      with self.assertRaisesRegex(error, said or ''):
        f(w)

  def test_what_is_no_array_is_not_equal(self):
    for other in (None, 'a'):
      self.assertIs(Negated(W) == other, False)
      self.assertIs(Negated(W) != other, True)

  def test_what_only_arrays_have_says_the_next_step(self):
    with self.assertRaisesRegex(AttributeError, "'sum', as arrays .* jc.lift"):
      Negated(W).sum()
    self.assertFalse(hasattr(Negated(W), 'sharding'))
    with self.assertRaisesRegex(AttributeError, "'object' .* 'shape'"):
      print(Negated(object()).shape)

  def test_moves_stay_compressed(self):
    self.assertIsInstance(Negated(W).T, Negated)
    self.assertIsInstance(Negated(W) @ W.T, jax.Array)

  def test_named_as_in_the_class(self):
    for name in operators.METHODS:
      method = getattr(Negated, name)
      self.assertEqual(method.__qualname__, f'CompressedArray.{name}')

  def test_the_file_of_the_noun_alone_brings_them(self):
    code = (
      'from jaxopt_compress.core import array;'
      "print(hasattr(array.CompressedArray, '__matmul__'))"
    )
    run = [sys.executable, '-c', code]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    self.assertEqual(out.stdout.strip(), 'True')


if __name__ == '__main__':
  absltest.main()
