"""Convolutions of the library against loops in numpy, on every instruction path."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import conv_oracle as oracle
import jax
import jax.numpy as jnp
import kernel_oracle
import numpy as np

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native

Act = native.Act
PATHS = native.paths()

# (image, window, outputs, and what differs from a window that moves by ones)
CASES = {
  'one channel': ((2, 8, 8, 1), (3, 3), 16, dict(padding=((1, 1), (1, 1)))),
  'three': ((1, 9, 11, 3), (5, 4), 33, dict(strides=(2, 1))),
  'twenty': (
    (2, 5, 7, 20),
    (3, 3),
    40,
    dict(padding=((0, 1), (1, 0)), strides=(2, 2)),
  ),
  'sixteen, all at once': ((1, 5, 6, 16), (5, 6), 12, {}),
  'thirty-two': ((3, 6, 6, 32), (3, 3), 32, dict(padding=((1, 1), (1, 1)))),
  'a hundred': ((1, 4, 5, 100), (2, 3), 9, dict(padding=((1, 0), (2, 1)))),
  'one tap': ((2, 5, 3, 24), (1, 1), 70, {}),
  'one row': ((2, 1, 19, 6), (1, 4), 8, dict(padding=((0, 0), (3, 0)))),
  'one column': ((2, 70, 1, 6), (4, 1), 40, dict(padding=((3, 0), (0, 0)))),
  'long, of whole steps': ((2, 1, 300, 1), (1, 64), 20, dict(strides=(1, 32))),
  'long, no whole steps': ((1, 1, 90, 5), (1, 7), 70, {}),
  'taps apart': (
    (1, 9, 8, 5),
    (3, 2),
    7,
    dict(rhs_dilation=(2, 3), padding=((2, 2), (1, 1))),
  ),
  'entries apart': (
    (2, 4, 3, 6),
    (3, 4),
    10,
    dict(lhs_dilation=(2, 3), padding=((1, 2), (3, 2))),
  ),
  'all apart': (
    (1, 5, 4, 4),
    (2, 3),
    6,
    dict(
      lhs_dilation=(3, 2),
      rhs_dilation=(2, 1),
      strides=(3, 2),
      padding=((4, 0), (0, 5)),
    ),
  ),
  'groups': (
    (2, 6, 5, 12),
    (3, 3),
    8,
    dict(feature_groups=4, padding=((1, 1), (1, 1))),
  ),
  'wide groups': ((1, 5, 5, 48), (2, 2), 70, dict(feature_groups=2)),
  'padding alone': ((1, 0, 3, 4), (2, 2), 3, dict(padding=((1, 2), (0, 1)))),
}


class Case:
  """A convolution; `group` rows of its matrix of windows share scales."""

  def __init__(self, name, case, *, group=None, zero=None, seed=0):
    shape, self.window, features, options = case
    self.options = dict(options)
    groups = self.options.get('feature_groups', 1)
    own, n = shape[3] // groups, features // groups
    self.name, self.n = name, n
    k = self.window[0] * self.window[1] * own
    self.group = k if group is None else min(group, k)
    rng = np.random.default_rng(seed)
    bits = layout.CODES[name].bits
    self.codes = kernel_oracle.draw_codes(rng, name, bits, (groups, k, n))
    scales = (groups, -(-k // self.group), n)
    self.scale = rng.uniform(0.5, 1.5, scales).astype(np.float32)
    self.zero = None
    if zero is not None:
      self.zero = rng.integers(-3, 4, scales).astype(zero)
    self.x = rng.normal(0.3, 1, shape).astype(np.float32)
    w = np.stack(
      [
        kernel_oracle.weight(
          self.codes[g],
          name,
          self.scale[g],
          None if self.zero is None else self.zero[g],
          self.group,
        )
        for g in range(groups)
      ]
    )
    self.totals = jnp.asarray(w.sum(1, keepdims=True), jnp.float32)
    self.w = _filters(w, self.window)
    self.payload = _panels(self.codes, name, self.group)

  def expected(self, x, w=None):
    return oracle.convolve(x, self.w if w is None else w, **self.options)

  def run(
    self,
    act,
    path='',
    x=None,
    scaled=True,
    finish=native.Finish(),
    out_dtype=jnp.float32,
    **rounding,
  ):
    geometry = dict(self.options)
    groups = geometry.pop('feature_groups', 1)

    def mine(p):
      return p if p is None or groups > 1 else p[0]

    if 'totals' in rounding:
      rounding['totals'] = mine(rounding['totals'])
    return np.asarray(
      conv.conv(
        jnp.asarray(self.x if x is None else x),
        mine(self.payload),
        jnp.asarray(mine(self.scale)) if scaled else None,
        None if self.zero is None else jnp.asarray(mine(self.zero)),
        native.Rounding(act=act, **rounding),
        finish,
        windows=conv.Windows(self.window, **geometry),
        format=self.name,
        n=self.n,
        group=self.group,
        feature_groups=groups,
        out_dtype=out_dtype,
        path=path,
      )
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _panels(codes, name, group):
  return layout.to_panels(codes, name, group)


def _filters(w, window):
  """[groups, k, n] as a kernel [height, width, channels, features]."""
  groups, k, n = w.shape
  x = w.reshape(groups, *window, k // (window[0] * window[1]), n)
  return np.moveaxis(x, 0, 3).reshape(*x.shape[1:4], groups * n)


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class ConvTest(parameterized.TestCase):
  @parameterized.named_parameters((name, case) for name, case in CASES.items())
  def test_codes_are_multiplied_exactly(self, case):
    it = Case('int8', case)
    x = np.random.default_rng(1).integers(-128, 128, case[0]).astype(np.int8)
    w = _filters(it.codes.astype(np.int64) - 128, it.window)
    expected = it.expected(x.astype(np.int64), w)
    for path in PATHS:
      y = it.run(Act.CODES, path, x, scaled=False, out_dtype=jnp.int32)
      np.testing.assert_array_equal(y, expected, path)

  @parameterized.named_parameters(
    (name, name, zero, group)
    for name, zero, group in (
      ('int8', None, None),
      ('int4', np.int8, 10),
      ('int3', None, 5),
      ('int2', np.float32, 20),
      ('ternary', None, 20),
      ('e2m1', None, 4),
      ('nf4', None, 10),
    )
  )
  def test_every_format(self, name, zero, group):
    # Twenty channels in groups of twenty, ten, five and four.
    it = Case(name, CASES['twenty'], group=group, zero=zero)
    for path in PATHS:
      y = it.run(Act.FLOAT, path)
      self.assertLess(oracle.distance(y, it.expected(it.x)), 2e-6, path)
      if name != 'nf4':
        y = it.run(Act.DYNAMIC, path)
        x = oracle.rounded(it.x, True)
        off = np.abs(y - it.expected(x))
        self.assertLess(off.max(), 1.1 * oracle.tie(it.x, it.w), path)
        self.assertLess(off.mean(), 0.02 * oracle.tie(it.x, it.w), path)

  def test_groups_that_end_between_channels(self):
    it = Case('int4', CASES['twenty'], group=24)
    for path in PATHS:
      y = it.run(Act.FLOAT, path)
      self.assertLess(oracle.distance(y, it.expected(it.x)), 2e-6, path)

  @parameterized.named_parameters(
    (name, name)
    for name in ('three', 'thirty-two', 'all apart', 'groups', 'taps apart')
  )
  def test_zero_points_and_bias(self, name):
    it = Case('int8', CASES[name], zero=np.float32)
    features = it.w.shape[3]
    bias = np.linspace(-5, 5, features, dtype=np.float32)
    groups = it.options.get('feature_groups', 1)
    rows = bias.reshape(groups, 1, it.n)
    for path in PATHS:
      y = it.run(
        Act.DYNAMIC,
        path,
        symmetric=False,
        totals=it.totals,
        finish=native.Finish(bias=jnp.asarray(rows if groups > 1 else rows[0])),
      )
      off = np.abs(y - it.expected(oracle.rounded(it.x, False)) - bias)
      self.assertLess(off.max(), 1.1 * oracle.tie(it.x, it.w), path)
      self.assertLess(off.mean(), 0.02 * oracle.tie(it.x, it.w), path)

  def test_a_range_that_is_given(self):
    it = Case('int4', CASES['twenty'], group=10)
    codes = np.clip(np.round(it.x * np.float32(1 / 0.03)) - 7, -128, 127)
    y = it.run(
      Act.STATIC,
      scale=jnp.full((1, 1), 0.03),
      zero=jnp.full((1, 1), -7.0),
      symmetric=False,
      totals=it.totals,
    )
    self.assertLess(oracle.distance(y, it.expected((codes + 7) * 0.03)), 1e-5)
    with self.assertRaisesRegex(Exception, 'zero points must be int8'):
      it.run(
        Act.STATIC,
        scale=jnp.full((1, 1), 0.03),
        zero=jnp.full((1, 1), 0.5),
        totals=it.totals,
      )
    with self.assertRaisesRegex(ValueError, 'totals'):
      it.run(Act.DYNAMIC, symmetric=False)

  def test_bfloat16(self):
    it = Case('int4', CASES['twenty'], group=10)
    x = jnp.asarray(it.x, jnp.bfloat16)
    exact = it.expected(np.asarray(x, np.float64))
    self.assertLess(oracle.distance(it.run(Act.FLOAT, x=x), exact), 6e-5)
    y = it.run(Act.FLOAT, x=x, out_dtype=jnp.bfloat16)
    self.assertLess(oracle.distance(np.float64(y), exact), 2**-8)
    it = Case('nf4', CASES['entries apart'])
    x = jnp.asarray(it.x, jnp.bfloat16)
    exact = it.expected(np.asarray(x, np.float64))
    self.assertLess(oracle.distance(it.run(Act.FLOAT, x=x), exact), 2e-6)

  def test_an_image_with_nan_is_nan_and_no_other(self):
    for act in (Act.FLOAT, Act.DYNAMIC, Act.STATIC):
      for bad in (np.nan, np.inf):
        it = Case('int8', CASES['thirty-two'])
        it.x[1, 0, 0, 0] = bad
        y = it.run(act, scale=jnp.full((1, 1), 0.03))
        self.assertTrue(np.isfinite(y[[0, 2]]).all())
        clips = act is Act.STATIC and bad == np.inf
        self.assertEqual(np.isnan(y[1]).all(), not clips)

  def test_no_images_and_no_windows(self):
    it = Case('int8', CASES['one channel'])
    y = it.run(Act.DYNAMIC, x=np.zeros((0, 8, 8, 1), np.float32))
    self.assertEqual(y.shape, (0, 8, 8, 16))
    it = Case('int8', CASES['sixteen, all at once'])
    y = it.run(Act.DYNAMIC, x=np.zeros((2, 4, 6, 16), np.float32))
    self.assertEqual(y.shape, (2, 0, 1, 12))

  @parameterized.named_parameters(
    ('squares', (3, 30, 31, 16), (3, 3), 100),
    ('a_column', (1, 501, 1, 24), (5, 1), 64),
    ('a_row', (2, 1, 1000, 9), (1, 3), 128),
  )
  def test_many_tasks(self, image, window, n):
    # Large enough to be shared between threads and to take several rounds of tiles.
    padding = tuple((i // 2, i // 2) for i in window)
    case = (image, window, n, dict(padding=padding))
    it = Case('int8', case)
    x = np.random.default_rng(1).integers(-128, 128, case[0]).astype(np.int8)
    w = _filters(it.codes.astype(np.int64) - 128, it.window)
    y = it.run(Act.CODES, '', x, scaled=False, out_dtype=jnp.int32)
    np.testing.assert_array_equal(y, it.expected(x.astype(np.int64), w))

  def test_wrong_operands_are_refused(self):
    it = Case('int8', CASES['thirty-two'])
    with self.assertRaisesRegex(Exception, 'shapes do not fit'):
      it.run(Act.FLOAT, x=np.ones((3, 6, 6, 31), np.float32))
    with self.assertRaisesRegex(Exception, 'types do not fit'):
      it.run(Act.CODES, out_dtype=jnp.int32)
    with self.assertRaisesRegex(Exception, 'no instruction path'):
      it.run(Act.FLOAT, path='avx-9000')
    it.options['padding'] = ((-1, 1), (1, 1))
    with self.assertRaisesRegex(ValueError, 'Slice it'):
      it.run(Act.FLOAT)


class TransformTest(parameterized.TestCase):
  def test_vmap_shares_or_stacks_the_weight(self):
    case = CASES['twenty']
    cases = [Case('int4', case, group=10, seed=i) for i in range(3)]
    x, payload, scale = (
      jnp.stack([jnp.asarray(p) for p in ps])
      for ps in zip(
        *((c.x, c.payload[0], c.scale[0]) for c in cases), strict=True
      )
    )

    def run(x, payload, scale):
      return conv.conv(
        x,
        payload,
        scale,
        windows=conv.Windows((3, 3), **case[3]),
        format='int4',
        n=40,
        group=10,
      )

    y = jax.jit(jax.vmap(run))(x, payload, scale)
    expected = np.stack([c.expected(c.x) for c in cases])
    self.assertLess(oracle.distance(y, expected), 2e-6)
    y = jax.vmap(lambda x: run(x, payload[0], scale[0]))(x)
    expected = np.stack([cases[0].expected(c.x) for c in cases])
    self.assertLess(oracle.distance(y, expected), 2e-6)
    y = jax.vmap(run, (None, 0, 0))(x[1], payload, scale)
    expected = np.stack([c.expected(cases[1].x) for c in cases])
    self.assertLess(oracle.distance(y, expected), 2e-6)

  def test_images_on_several_devices(self):
    case = ((4, 8, 8, 6), (3, 3), 16, dict(padding=((1, 1), (1, 1))))
    it = Case('int8', case)
    mesh = jax.make_mesh((4,), ('images',))
    spec = jax.sharding.PartitionSpec('images')
    scale = jnp.asarray(it.scale[0])

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def run(x):
      return conv.conv(
        x,
        it.payload[0],
        scale,
        windows=conv.Windows((3, 3), **case[3]),
        format='int8',
        n=16,
        group=54,
      )

    x = jax.device_put(it.x, jax.sharding.NamedSharding(mesh, spec))
    self.assertLess(oracle.distance(run(x), it.expected(it.x)), 2e-6)


# Images that are large enough to be cut into strips where they are few.
STRIPS = {
  'padded': ((1, 41, 40, 16), (3, 3), 32, dict(padding=((1, 1), (1, 1)))),
  'in groups': (
    (1, 40, 40, 16),
    (3, 3),
    64,
    dict(padding=((2, 0), (0, 2)), feature_groups=2),
  ),
  'one tap': ((1, 40, 43, 16), (1, 1), 64, {}),
  'every other': ((1, 40, 40, 24), (5, 2), 70, dict(strides=(2, 2))),
  'rows of taps': ((1, 64, 64, 8), (1, 4), 40, dict(padding=((0, 0), (2, 1)))),
  'apart': ((1, 40, 30, 20), (4, 3), 16, dict(lhs_dilation=(2, 2))),
}


class StripsTest(parameterized.TestCase):
  @parameterized.product(
    name=list(STRIPS), how=('int8', 'float', 'codes', 'int4'), path=PATHS
  )
  def test_one_image_is_as_among_many(self, name, how, path):
    (_, *sizes), window, n, geometry = STRIPS[name]
    geometry = dict(geometry)
    groups = geometry.pop('feature_groups', 1)
    format = 'int4' if how == 'int4' else 'int8'
    act = {'float': Act.FLOAT, 'codes': Act.CODES}.get(how, Act.DYNAMIC)
    own, n = sizes[-1] // groups, n // groups
    k = window[0] * window[1] * own
    group = own if how == 'int4' else k
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (groups, k, n), np.uint8)
    x = rng.normal(0.5, 1, (16, *sizes)).astype(np.float32)
    x[3, -1, -1, -1] = np.nan
    x = jnp.asarray(np.int8(9 * np.nan_to_num(x)) if how == 'codes' else x)

    def mine(p):
      return p if groups > 1 else p[0]

    scale = mine(jnp.ones((groups, -(-k // group), n)))
    call = functools.partial(
      conv.conv,
      w=mine(_panels(codes, format, group)),
      scale=None if how == 'codes' else scale,
      rounding=native.Rounding(
        totals=mine(jnp.ones((groups, 1, n))),
        act=act,
        symmetric=act != Act.DYNAMIC,
      ),
      windows=conv.Windows(window, **geometry),
      format=format,
      n=n,
      group=group,
      feature_groups=groups,
      out_dtype=jnp.int32 if how == 'codes' else jnp.float32,
      path=path,
    )
    many = np.asarray(call(x))
    for i in (0, 3):
      one = np.asarray(call(x[i : i + 1]))
      np.testing.assert_array_equal(one[0], many[i])


if __name__ == '__main__':
  absltest.main()
