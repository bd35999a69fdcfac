"""Pieces and entries follow what JAX itself does to an array of indices."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import moved

A, B, C = -3, -2, -1  # the axes of a [2, 3, 4] array
BY_B, BY_C = ((B, 3),), ((C, 4),)

# What moves an array [2, 3, 4], and the pieces of the axes of each result; None
# where they are not followed.
CASES = dict(
  transpose=(lambda x: x.transpose(1, 2, 0), [(BY_B, BY_C, ((A, 2),))]),
  merge=(lambda x: x.reshape(6, 4), [(((A, 2), (B, 3)), BY_C)]),
  split_axis=(
    lambda x: x.reshape(2, 3, 2, 2),
    [(((A, 2),), BY_B, ((C, 2),), ((C, 2),))],
  ),
  new_axis=(
    lambda x: lax.reshape(x, (2, 1, 3, 4)),
    [(((A, 2),), (), BY_B, BY_C)],
  ),
  mixed=(lambda x: x.reshape(2, 4, 3), None),
  permuting=(
    lambda x: lax.reshape(x, (12, 2), dimensions=(1, 2, 0)),
    [(((B, 3), (C, 4)), ((A, 2),))],
  ),
  broadcast=(
    lambda x: lax.broadcast_in_dim(x, (5, 2, 3, 4), (1, 2, 3)),
    [((), ((A, 2),), BY_B, BY_C)],
  ),
  flip=(lambda x: lax.rev(x, (1,)), [(((A, 2),), BY_B, BY_C)]),
  slice=(
    lambda x: lax.slice(x, (0, 1, 0), (2, 3, 4), (1, 1, 2)),
    [(((A, 2),), ((B, 2),), ((C, 2),))],
  ),
  one_entry=(
    lambda x: lax.slice(x, (1, 0, 0), (2, 3, 4)),
    [((), BY_B, BY_C)],
  ),
  split=(
    lambda x: lax.split(x, (1, 3), axis=2),
    [(((A, 2),), BY_B, ()), (((A, 2),), BY_B, ((C, 3),))],
  ),
)


def _move(f, *args):
  """The one equation of a function, and its move."""
  closed = jax.make_jaxpr(f)(*args)
  (eqn,) = closed.jaxpr.eqns
  return moved.of(eqn)


class MoveTest(parameterized.TestCase):
  @parameterized.named_parameters(*((n, *case) for n, case in CASES.items()))
  def test_axes_and_entries(self, f, want):
    index = np.arange(24).reshape(2, 3, 4)
    move = _move(f, index)
    got = move.axes(moved.whole(index.shape))
    self.assertEqual(got and [tuple(axes) for axes in got], want)
    # An array of indices moves as the entries do.
    outs = jax.tree.leaves(f(jnp.asarray(index)))
    for entries, out in zip(move.entries(index), outs, strict=True):
      np.testing.assert_array_equal(np.broadcast_to(entries, out.shape), out)

  @parameterized.named_parameters(*((n, case[0]) for n, case in CASES.items()))
  def test_axes_along_which_all_is_alike(self, f):
    """Known of each column only, or of all at once: as when written out."""
    for known in (np.arange(4).reshape(1, 1, 4), np.full((1, 1, 1), 7)):
      whole = np.broadcast_to(known, (2, 3, 4))
      move = _move(f, whole)
      outs = jax.tree.leaves(f(jnp.asarray(whole)))
      for entries, out in zip(move.entries(known), outs, strict=True):
        self.assertLessEqual(entries.size, out.size)
        np.testing.assert_array_equal(np.broadcast_to(entries, out.shape), out)

  def test_a_squeezed_and_an_unstacked_axis_are_gone(self):
    move = _move(lambda x: lax.squeeze(x, (0,)), np.zeros((1, 3)))
    self.assertEqual(move.axes(moved.whole((1, 3))), [[((-1, 3),)]])
    (eqn,) = jax.make_jaxpr(jnp.unstack)(np.zeros((2, 3))).jaxpr.eqns
    if eqn.primitive.name == 'unstack':
      axes = moved.of(eqn).axes(moved.whole((2, 3)))
      self.assertEqual(axes, [[((-1, 3),)]] * 2)

  def test_which_operands_are_followed(self):
    w, i = np.zeros((6, 4)), np.int32(1)
    f = lambda w, i: lax.dynamic_slice(w, (i, i), (3, 4))
    *_, eqn = jax.make_jaxpr(f)(w, i).jaxpr.eqns  # before it, i is wrapped
    self.assertEqual(
      moved.of(eqn).axes(moved.whole(w.shape)), [[((-2, 3),), ((-1, 4),)]]
    )
    self.assertIsNone(moved.of(eqn, 1))
    f = lambda a, b: lax.concatenate((a, b), 0)
    (eqn,) = jax.make_jaxpr(f)(w, w).jaxpr.eqns
    self.assertEqual(
      moved.of(eqn, 1).axes(moved.whole(w.shape)), [[((-2, 12),), ((-1, 4),)]]
    )

  @parameterized.named_parameters(
    ('stack', lambda w: jnp.stack([0 * w, w], 1), [((-2, 6),), (), ((-1, 4),)]),
    (
      'select',
      lambda w: lax.select_n(w[0, 0] > 0, 0 * w, w),
      [((-2, 6),), ((-1, 4),)],
    ),
    ('tile', lambda w: jnp.tile(w, (2, 1)), [((-2, 12),), ((-1, 4),)]),
    (
      'pad',
      lambda w: lax.pad(w, 0.0, ((1, 1, 0), (0, 0, 0))),
      [((-2, 8),), ((-1, 4),)],
    ),
  )
  def test_joined(self, f, want):
    *_, eqn = jax.make_jaxpr(f)(np.zeros((6, 4), np.float32)).jaxpr.eqns
    last = [i for i, v in enumerate(eqn.invars) if v.aval.shape == (6, 4)][-1]
    self.assertEqual(moved.of(eqn, last).axes(moved.whole((6, 4))), [want])

  def test_what_computes_is_no_move(self):
    move = _move(lambda x: x + x, np.zeros((2, 3)))
    self.assertIsNone(move.axes(moved.whole((2, 3))))
    self.assertIsNone(move.entries(np.zeros((2, 3))))


class CommonBlocksTest(parameterized.TestCase):
  def test_blocks(self):
    blocks = lambda a, b: moved.common_blocks(a, b)
    self.assertEqual(blocks((4, 6), (4, 6)), [([0], [0]), ([1], [1])])
    self.assertEqual(blocks((24,), (2, 3, 4)), [([0], [0, 1, 2])])
    self.assertEqual(blocks((1, 1), ()), [([0], []), ([1], [])])
    self.assertEqual(blocks((2, 1, 3), (6,)), [([0, 1, 2], [0])])


if __name__ == '__main__':
  absltest.main()
