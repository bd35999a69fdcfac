"""Axes as products of parts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.kernels.attends import axes


def _layout_of(f, shape, *, back):
  """(layout before, after) the moves of a program."""
  jaxpr = jax.make_jaxpr(f)(jnp.ones(shape)).jaxpr
  parts = axes.Parts()
  eqns = jaxpr.eqns[::-1] if back else jaxpr.eqns
  start = jaxpr.outvars[0].aval.shape if back else shape
  first = layout = parts.new(start)
  for eqn in eqns:
    layout = (axes.before if back else axes.after)(parts, eqn, layout)
    if layout is None:
      return None
  return parts, [parts.known(a) for a in first], list(map(parts.known, layout))


class AxesTest(parameterized.TestCase):
  def test_heads_split_and_moved(self):
    # [b, t, (h d)] -> [b, h, t, d]
    f = lambda x: x.reshape(2, 5, 4, 8).transpose(0, 2, 1, 3)
    _, given, made = _layout_of(f, (2, 5, 32), back=False)
    b, t, (h, d) = given[0], given[1], given[2]
    self.assertEqual(made, [b, (h,), t, (d,)])

  def test_back_through_the_same(self):
    f = lambda x: x.reshape(2, 5, 4, 8).transpose(0, 2, 1, 3)
    _, (b, h, t, d), made = _layout_of(f, (2, 5, 32), back=True)
    self.assertEqual(made, [b, t, h + d])

  def test_a_broadcast_knows_nothing_of_what_it_spreads_over(self):
    f = lambda x: jnp.repeat(x, 3, axis=1)
    parts, (t, (h, g), d), made = _layout_of(f, (5, 4, 8), back=True)
    self.assertEqual(made, [t, (h,), d])
    self.assertEqual(parts.size((g,)), 3)

  def test_axes_of_size_one_are_nothing(self):
    f = lambda x: x.reshape(5, 1, 8)[:, :, None].squeeze(1)
    _, (t, one, d), made = _layout_of(f, (5, 8), back=True)
    self.assertEqual((one, made), ((), [t, d]))

  def test_what_does_not_divide(self):
    f = lambda x: x.reshape(3, 4).reshape(4, 3)
    self.assertIsNone(_layout_of(f, (2, 6), back=False))

  @parameterized.parameters(
    (lambda x: x * 2,), (lambda x: x[:1],), (lambda x: x.sum(0),)
  )
  def test_what_is_no_move(self, f):
    self.assertIsNone(_layout_of(f, (5, 8), back=True))

  def test_the_same_axes(self):
    parts = axes.Parts()
    a, (free,) = parts.new((4, 6)), parts.new((24,))
    self.assertTrue(parts.same((free,), (a[0] + a[1],), free))
    self.assertEqual(parts.known(free), a[0] + a[1])
    self.assertFalse(parts.same((a[0],), (a[1],)))
    self.assertFalse(parts.same(a, a[:1]))

  def test_beside(self):
    (x,) = jax.make_jaxpr(jnp.sin)(jnp.ones((5, 1))).jaxpr.invars
    layout = axes.Parts().new((5, 8))
    self.assertEqual(axes.beside(layout, x), (layout[0], ()))


if __name__ == '__main__':
  absltest.main()
