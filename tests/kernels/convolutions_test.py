"""The law for packed kernels of convolutions."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.kernels import leaves
from jaxopt_compress.kernels.cpu import native

# On machines without the library, too: the portable path computes the same.
pack = functools.partial(jc.pack, target='cpu')

_KEYS = [jax.random.key(i) for i in range(3)]


def _conv(strides=(1, 1), padding='SAME', groups=1, numbers=None, **more):
  spatial = len(strides)
  numbers = numbers or ('NHWC', 'HWIO', 'NHWC')
  numbers = ('NWC', 'WIO', 'NWC') if spatial == 1 else numbers
  return lambda p, x: jax.lax.conv_general_dilated(
    x,
    p['w'],
    strides,
    padding,
    dimension_numbers=numbers,
    feature_group_count=groups,
    **more,
  )


# what it is: (function, images, kernel)
CONVS = {
  'same': (_conv(), (2, 7, 6, 8), (3, 3, 8, 12)),
  'strided': (_conv((2, 1), 'VALID'), (2, 7, 6, 3), (3, 2, 3, 5)),
  'dilated': (
    _conv(padding=((1, 2), (0, 3)), rhs_dilation=(2, 1)),
    (1, 7, 6, 8),
    (3, 3, 8, 12),
  ),
  'transposed': (
    _conv(padding=((1, 2), (2, 2)), lhs_dilation=(2, 2)),
    (1, 4, 5, 8),
    (3, 3, 8, 12),
  ),
  'grouped': (_conv(groups=2), (2, 7, 6, 8), (3, 3, 4, 12)),
  'depthwise': (_conv(groups=8), (2, 7, 6, 8), (3, 3, 1, 16)),
  'of one axis': (_conv((2,)), (2, 9, 8), (3, 8, 12)),
  'channels first': (
    _conv(numbers=('NCHW', 'OIHW', 'NCHW')),
    (2, 8, 7, 6),
    (12, 8, 3, 3),
  ),
}


def _distance(y, expected):
  return float(jnp.abs(y - expected).max() / jnp.abs(expected).max())


class ConvTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{name}, {words}', name, words)
    for name in CONVS
    for words in ('W8A8', 'int8', 'int4 g4 asym, int8', 'int8, int8 token')
    # Channels kept apart have one scale each; three are too few for a group.
    if 'g4' not in words or name not in ('depthwise', 'strided')
  )
  def test_law(self, name, words):
    f, image, kernel = CONVS[name]
    x = jax.random.normal(_KEYS[0], image) + 0.3
    params = {'w': jax.random.normal(_KEYS[1], kernel)}
    uses = jc.uses(f)(params, x)
    q = jc.quantize(params, [('w', words)], uses)
    p = pack(q, uses)
    g = jc.lift(f, strict=True)
    loss = lambda x, q: jnp.mean(g(q, x) ** 2)
    run = jax.jit(lambda q, x: (g(q, x), jax.grad(loss)(x, q)))
    for got, expected in zip(run(p, x), run(q, x), strict=True):
      # A code may fall to the other side.
      self.assertLess(
        _distance(got, expected),
        2e-2 if ',' in words or words == 'W8A8' else 2e-5,
      )
    for leaf in (p, jc.unpack(p)):
      dense = jc.materialize(q)['w']
      self.assertLess(_distance(jc.materialize(leaf)['w'], dense), 1e-6)

  @parameterized.named_parameters((name, name) for name in CONVS)
  def test_law_of_floats(self, name):
    f, image, kernel = CONVS[name]
    x = jax.random.normal(_KEYS[0], image) + 0.3
    params = {'w': jax.random.normal(_KEYS[1], kernel)}
    p = pack(params, jc.uses(f)(params, x), floats=True)
    self.assertIsInstance(p['w'], leaves.FloatArray)
    g = jc.lift(f, strict=True)
    loss = lambda x, q: jnp.mean(g(q, x) ** 2)
    run = jax.jit(lambda q, x: (g(q, x), jax.grad(loss)(x, q)))
    for got, expected in zip(run(p, x), run(params, x), strict=True):
      self.assertLess(_distance(got, expected), 2e-6)

  @parameterized.product(
    name=('same', 'channels first', 'depthwise', 'grouped'),
    words=(None, 'W8A8'),
  )
  def test_what_follows(self, name, words):
    conv, image, kernel = CONVS[name]
    x = jax.random.normal(_KEYS[0], image) + 0.3
    first = name == 'channels first'
    n = kernel[0] if first else kernel[-1]
    of_columns = (1, n, 1, 1) if first else (1, 1, 1, n)
    params = {
      'w': jax.random.normal(_KEYS[1], kernel),
      'scale': jnp.linspace(0.5, 1.5, n).reshape(of_columns),
      'shift': jnp.linspace(-1.0, 1.0, n).reshape(of_columns),
    }
    shape = jax.eval_shape(conv, params, x).shape
    other = jax.random.normal(_KEYS[2], shape)

    def f(p, x):
      y = conv(p, x) * p['scale'] + p['shift']
      y = jax.nn.silu(y) * p['scale'] - p['shift']
      return jax.nn.relu(y + other)

    uses = jc.uses(f)(params, x)
    q = jc.quantize(params, [('w', words), ('.*', None)], uses)
    p = pack(q, uses, floats=True)
    g = jax.jit(jc.lift(f))
    # A code may fall to the other side.
    bound = 2e-6 if words is None else 2e-2
    self.assertLess(_distance(g(p, x), g(q, x)), bound)
    if native.available():
      program = g.lower(p, x).as_text()
      self.assertIn('curve = "silu"', program)
      self.assertNotIn('stablehlo.maximum', program)

  @parameterized.product(words=(None, 'W8A8'), side=(-2, -1))
  def test_what_follows_where_an_axis_was_dropped(self, words, side):
    """A convolution of one axis, as programs write it that have those of two alone."""
    numbers = 'NCHW', 'OIHW', 'NCHW'
    conv = _conv(padding='VALID', numbers=numbers)
    x = jax.random.normal(_KEYS[0], (2, 8, 30)) + 0.3
    params = {
      'w': jnp.expand_dims(jax.random.normal(_KEYS[1], (12, 8, 5)), side),
      'shift': jnp.linspace(-1.0, 1.0, 12)[None, :, None],
    }
    other = jax.random.normal(_KEYS[2], (2, 12, 26))

    def f(p, x):
      y = conv(p, jnp.expand_dims(x, side)).squeeze(side) + p['shift']
      return jax.nn.relu(jax.nn.silu(y) + other)

    uses = jc.uses(f)(params, x)
    q = jc.quantize(params, [('w', words), ('.*', None)], uses)
    p = pack(q, uses, floats=True)
    g = jax.jit(jc.lift(f))
    bound = 2e-6 if words is None else 2e-2
    self.assertLess(_distance(g(p, x), g(q, x)), bound)
    if native.available():
      program = g.lower(p, x).as_text()
      self.assertIn('curve = "silu"', program)
      self.assertNotIn('stablehlo.maximum', program)

  @parameterized.product(words=(None, 'W8A8', 'int4, int8'), groups=(1, 2, 8))
  def test_a_transposed_convolution_turns_its_windows(self, words, groups):
    def f(p, x):
      w = jax.lax.rev(p['w'], (0, 1))
      conv = _conv(padding=((1, 2), (2, 2)), lhs_dilation=(2, 2), groups=groups)
      return conv({'w': w}, x)

    x = jax.random.normal(_KEYS[0], (1, 4, 5, 8)) + 0.3
    params = {'w': jax.random.normal(_KEYS[1], (3, 3, 8 // groups, 16))}
    uses = jc.uses(f)(params, x)
    q = jc.quantize(params, [('w', words)], uses)
    p = pack(q, uses, floats=True)
    self.assertIsInstance(p['w'], leaves.PackedArray)
    g = jax.jit(jc.lift(f, strict=True))
    bound = 2e-6 if words is None else 2e-2
    self.assertLess(_distance(g(p, x), jax.jit(jc.lift(f))(q, x)), bound)

  def test_vmap(self):
    f, image, kernel = CONVS['same']
    x = jax.random.normal(_KEYS[0], (3, *image))
    params = {'w': jax.random.normal(_KEYS[1], kernel)}
    uses = jc.uses(f)(params, x[0])
    q = jc.quantize(params, [('w', 'int8')], uses)
    g = jax.jit(jax.vmap(jc.lift(f), (None, 0)))
    self.assertLess(_distance(g(pack(q, uses), x), g(q, x)), 2e-5)

  def test_other_groups_are_dense(self):
    f, image, kernel = CONVS['same']
    params = {'w': jax.random.normal(_KEYS[1], kernel)}
    uses = jc.uses(f)(params, jnp.ones(image))
    q = jc.quantize(params, [('w', 'int8')], uses)
    p = pack(q, uses)
    x = jnp.ones((*image[:-1], 16))
    (met,) = jc.explain(_conv(groups=2))(p, x)
    self.assertIn('another number of groups', met.reason)


if __name__ == '__main__':
  absltest.main()
