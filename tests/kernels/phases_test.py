"""Transposed convolutions whose windows lie side by side; what follows is as ever."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.kernels.cpu import native

_KEYS = [jax.random.key(i) for i in range(3)]


def _distance(y, expected):
  return float(jnp.abs(y - expected).max() / jnp.abs(expected).max())


class PhasesTest(parameterized.TestCase):
  @parameterized.product(
    words=(
      'W8A8',
      'int8 asym, int8 asym',
      'int4, int8 token',
      'W4A16',
      'int8',
      'NF4',
    ),
    spec=(('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW')),
    phases=((2, 2), (3, 1)),
  )
  def test_law(self, words, spec, phases):
    shapes = {'N': 2, 'H': 8, 'W': 9, 'C': 8, 'O': 6, 'I': 8}
    window = {'H': phases[0], 'W': phases[1] if phases[1] > 1 else 3}
    x = jax.random.normal(_KEYS[0], [shapes[a] for a in spec[0]]) + 0.3
    kernel = [window.get(a, shapes[a]) for a in spec[1]]
    axes = tuple(spec[1].index(a) for a in 'HW')
    pads = tuple((p - 1, p - 1) if p > 1 else (1, 1) for p in phases)
    of_columns = [6 if a == 'C' else 1 for a in spec[2]]
    params = {
      'w': jax.random.normal(_KEYS[1], kernel),
      'scale': jnp.linspace(0.5, 1.5, 6).reshape(of_columns),
    }

    def f(p, x, other=0.0):
      w = jax.lax.rev(p['w'], axes)
      y = jax.lax.conv_general_dilated(
        x, w, (1, 1), pads, phases, dimension_numbers=spec
      )
      return jax.nn.silu(y * p['scale']) * p['scale'] + other

    other = jax.random.normal(_KEYS[2], jax.eval_shape(f, params, x).shape)
    uses = jc.uses(f)(params, x, other)
    q = jc.quantize(params, [('w', words), ('.*', None)], uses)
    p = jc.pack(q, uses, target='cpu')
    g = jax.jit(jc.lift(f))
    self.assertLess(_distance(g(p, x, other), g(q, x, other)), 1e-5)
    # Groups of rows, which NF4 has, are not turned around: it is dense by then.
    if native.available() and words != 'NF4':
      self.assertIn('curve = "silu"', g.lower(p, x, other).as_text())
    loss = lambda p, x: jnp.sum(jc.lift(f)(p, x, other) ** 2)
    got, want = (jax.grad(loss, 1)(leaf, x) for leaf in (p, q))
    self.assertLess(_distance(got, want), 1e-5)

  @parameterized.parameters((0, 9), (2, 3), (8, 9))
  def test_few_entries(self, *sizes):
    f = lambda p, x: jax.lax.conv_general_dilated(
      x,
      p['w'],
      (1, 1),
      [(1, 1)] * 2,
      (2, 2),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    x = jnp.ones((2, *sizes, 7))
    params = {'w': jax.random.normal(_KEYS[0], (2, 2, 7, 5))}
    uses = jc.uses(f)(params, x)
    p = jc.pack(jc.quantize(params, [('w', 'int8')], uses), uses, target='cpu')
    g = jax.jit(jc.lift(f))
    self.assertEqual(g(p, x).shape, f(params, x).shape)
    # Four phases of five features.
    there = 'x20xf32' in g.lower(p, x).as_text()
    self.assertEqual(there, sizes == (8, 9))


if __name__ == '__main__':
  absltest.main()
