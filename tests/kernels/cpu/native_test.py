"""Products of the library against numpy, on every instruction path of the machine."""

from concurrent import futures
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import kernel_oracle as oracle
import numpy as np

from jaxopt_compress.kernels import curves
from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels.cpu import native

Act = native.Act
PATHS = native.paths()
# AMX declines products of a few rows, so it is what the best path takes.
EACH = [p for p in ('', *PATHS) if p != 'amx']

# (rows, k, n, rows of a group)
SHAPES = (
  (1, 64, 32, 64),
  (3, 130, 45, 130),
  (17, 128, 64, 32),
  (33, 100, 33, 20),
  (31, 96, 40, 48),
)


class Case:
  """A product, and what numpy says it is."""

  def __init__(self, name, shape, *, zero=None, seed=0):
    self.m, self.k, self.n, self.group = shape
    self.name = name
    rng = np.random.default_rng(seed)
    bits = layout.CODES[name].bits
    self.codes = oracle.draw_codes(rng, name, bits, (self.k, self.n))
    groups = -(-self.k // self.group)
    self.scale = rng.uniform(0.5, 1.5, (groups, self.n)).astype(np.float32)
    self.zero = None
    if zero is not None:
      self.zero = rng.integers(-3, 4, (groups, self.n)).astype(zero)
    self.x = rng.normal(0.3, 1, (self.m, self.k)).astype(np.float32)
    self.w = oracle.weight(self.codes, name, self.scale, self.zero, self.group)
    self.payload = layout.to_panels(self.codes, name, self.group)

  def run(
    self,
    act,
    path='',
    x=None,
    finish=native.Finish(),
    out_dtype=jnp.float32,
    **rounding,
  ):
    return np.asarray(
      native.matmul(
        jnp.asarray(self.x if x is None else x),
        self.payload,
        jnp.asarray(self.scale),
        None if self.zero is None else jnp.asarray(self.zero),
        native.Rounding(act=act, **rounding),
        finish,
        format=self.name,
        k=self.k,
        n=self.n,
        group=self.group,
        out_dtype=out_dtype,
        path=path,
      )
    )


def _distance(y, expected):
  return np.abs(y - expected).max() / np.abs(expected).max()


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class MatmulTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{name} on {path or "the best"}', name, path)
    for name in layout.CODES
    for path in EACH
  )
  def test_float_operand(self, name, path):
    for i, shape in enumerate(SHAPES):
      case = Case(name, shape, zero=(None, np.int8, np.float32)[i % 3], seed=i)
      y = case.run(Act.FLOAT, path)
      self.assertLess(_distance(y, case.x @ case.w), 2e-6, shape)

  @parameterized.named_parameters(
    (f'{name} on {path or "the best"}', name, path)
    for name in layout.CODES
    if name != 'nf4'
    for path in EACH
  )
  def test_rounded_operand(self, name, path):
    shape = SHAPES[len(name) % len(SHAPES)]
    # A code half way between two may fall to either: by one step of one entry.
    case = Case(name, shape, zero=np.int8)
    step = np.abs(case.w).max() * np.abs(case.x).max() / 127
    y = case.run(Act.DYNAMIC, path)
    off = np.abs(y - oracle.dynamic(case.x) @ case.w)
    self.assertLess(off.max(), 1.1 * step)
    self.assertLess(np.mean(off), 0.02 * step)
    with self.assertRaisesRegex(ValueError, 'sums of the columns'):
      case.run(Act.DYNAMIC, path, symmetric=False)
    totals = jnp.asarray(case.w.sum(0, keepdims=True), jnp.float32)
    y = case.run(Act.DYNAMIC, path, symmetric=False, totals=totals)
    off = np.abs(y - oracle.dynamic_asymmetric(case.x) @ case.w)
    self.assertLess(off.max(), 1.1 * step)
    self.assertLess(np.mean(off), 0.02 * step)

  @parameterized.parameters(*[(path,) for path in EACH])
  def test_codes_are_multiplied_exactly(self, path):
    for m, k, n in ((1, 1, 1), (5, 70, 33), (40, 515, 64), (16, 64, 31)):
      case = Case('int8', (m, k, n, k))
      x = np.random.default_rng(k).integers(-128, 128, (m, k), np.int8)
      y = native.matmul(
        jnp.asarray(x),
        case.payload,
        None,
        rounding=native.Rounding(act=Act.CODES),
        format='int8',
        k=k,
        n=n,
        group=k,
        out_dtype=jnp.int32,
        path=path,
      )
      w = case.codes.astype(np.int64) - 128
      np.testing.assert_array_equal(y, x.astype(np.int64) @ w)

  def test_static_range_and_bias(self):
    case = Case('int4', (9, 64, 40, 32))
    bias = np.linspace(-5, 5, 40, dtype=np.float32)[None]
    y = case.run(
      Act.STATIC,
      scale=jnp.full((1, 1), 0.03),
      zero=jnp.full((1, 1), -7.0),
      symmetric=False,
      totals=jnp.asarray(case.w.sum(0, keepdims=True), jnp.float32),
      finish=native.Finish(bias=jnp.asarray(bias)),
    )
    codes = np.clip(np.round(case.x * np.float32(1 / 0.03)) - 7, -128, 127)
    x = (codes + 7) * 0.03
    self.assertLess(_distance(y, x @ case.w + bias), 1e-5)

  @parameterized.parameters(*[(path,) for path in EACH])
  def test_a_static_zero_that_is_no_code(self, path):
    case = Case('int8', (9, 64, 40, 64))
    totals = jnp.asarray(case.w.sum(0, keepdims=True), jnp.float32)
    for zero in (np.nan, np.inf, -129.0, 128.0, 1e20, 0.5, 127.0):
      y = case.run(
        Act.STATIC,
        path,
        scale=jnp.full((1, 1), 0.03),
        zero=jnp.full((1, 1), zero),
        symmetric=False,
        totals=totals,
      )
      self.assertEqual(np.isnan(y).all(), zero != 127.0, zero)
      self.assertEqual(np.isnan(y).any(), zero != 127.0, zero)

  @parameterized.parameters(
    (jnp.bfloat16,),
    (jnp.float8_e8m0fnu,),
    (jnp.float8_e4m3fn,),
    (jnp.float8_e4m3fn, 0.37),
  )
  def test_types_of_scales(self, dtype, factor=None):
    case = Case('e2m1', (4, 64, 40, 32))
    scale = np.asarray(
      jnp.asarray(case.scale).astype(dtype).astype(jnp.float32)
    )
    case.w = oracle.weight(case.codes, 'e2m1', scale, None, 32)
    case.scale = jnp.asarray(case.scale).astype(dtype)
    given = None if factor is None else jnp.full((1, 1), factor)
    y = case.run(Act.FLOAT, scale=given)
    self.assertLess(_distance(y, case.x @ case.w * (factor or 1)), 2e-6)

  def test_every_scale_of_e4m3(self):
    scale = np.arange(256, dtype=np.uint8).view(jnp.float8_e4m3fn)[None]
    ones = jnp.full((4, 256), 129, jnp.uint8)
    y = native.matmul(
      jnp.ones((1, 4)),
      layout.to_panels(ones, 'int8', 4),
      jnp.asarray(scale),
      format='int8',
      k=4,
      n=256,
      group=4,
    )
    np.testing.assert_array_equal(y, 4 * scale.astype(np.float32))

  def test_bfloat16(self):
    case = Case('int4', (20, 64, 40, 32))
    x = jnp.asarray(case.x, jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ case.w
    y = case.run(Act.FLOAT, x=x)
    self.assertLess(_distance(y, exact), 3e-5)
    y = case.run(Act.FLOAT, x=x, out_dtype=jnp.bfloat16)
    self.assertLess(_distance(np.float64(y), exact), 2**-8)

  @parameterized.parameters(1, 20)
  def test_a_row_with_nan_is_nan_and_no_other(self, m):
    for act in (Act.FLOAT, Act.DYNAMIC, Act.STATIC):
      for bad in (np.nan, np.inf):
        case = Case('int8', (m + 1, 64, 40, 64))
        case.x[m, 3] = bad
        y = case.run(act, scale=jnp.full((1, 1), 0.03))
        self.assertTrue(np.isfinite(y[:m]).all())
        clips = act is Act.STATIC and bad == np.inf
        self.assertEqual(np.isnan(y[m]).all(), not clips)

  def test_rows_of_zeros(self):
    case = Case('int4', (3, 64, 40, 32))
    case.x[:] = 0
    for act in (Act.FLOAT, Act.DYNAMIC):
      np.testing.assert_array_equal(case.run(act), 0)

  def test_tiny_and_huge(self):
    for size in (1e-30, 1e30):
      case = Case('int8', (2, 64, 40, 64))
      y = case.run(Act.FLOAT, x=case.x * np.float32(size)) / size
      self.assertLess(_distance(y, case.x @ case.w), 2e-6)

  @parameterized.parameters(*[(path,) for path in EACH])
  def test_huge_on_both_sides_asymmetric(self, path):
    case = Case('int8', (2, 64, 40, 64))
    case.scale = case.scale * np.float32(2**-20)
    case.x[:, :2] = 3, -3
    x = np.clip(case.x, -3, 3)
    totals = case.w.sum(0, keepdims=True) * 2.0**-20
    how = dict(symmetric=False, totals=jnp.asarray(totals, jnp.float32))
    y = case.run(Act.DYNAMIC, path, x=x, **how)
    # 5e38, from the least to the largest, is not a float32.
    huge = case.run(Act.DYNAMIC, path, x=x * np.float32(2.0**126), **how)
    np.testing.assert_allclose(huge * 2.0**-126, y, rtol=1e-6)

  def test_sums_near_the_end_of_int32(self):
    # 100,000 products of -128 and -128 are 1.6e9.
    k, n = 100_000, 2
    codes = np.zeros((k, n), np.uint8)
    codes[:, 1] = 255
    x = np.full((1, k), -128, np.int8)
    y = native.matmul(
      jnp.asarray(x),
      layout.to_panels(codes, 'int8', k),
      None,
      rounding=native.Rounding(act=Act.CODES),
      format='int8',
      k=k,
      n=n,
      group=k,
      out_dtype=jnp.int32,
    )
    self.assertEqual(y.tolist(), [[128 * 128 * k, -128 * 127 * k]])


class TransformTest(parameterized.TestCase):
  def test_vmap_shares_or_stacks_the_weight(self):
    cases = [Case('int4', (3, 64, 40, 32), seed=i) for i in range(4)]

    def stack(name):
      return jnp.stack([jnp.asarray(getattr(c, name)) for c in cases])

    def run(x, payload, scale):
      return native.matmul(
        x,
        payload,
        scale,
        format='int4',
        k=64,
        n=40,
        group=32,
      )

    y = jax.vmap(run)(stack('x'), stack('payload'), stack('scale'))
    expected = np.stack([c.x @ c.w for c in cases])
    self.assertLess(_distance(y, expected), 2e-6)
    first = cases[0]
    y = jax.vmap(lambda x: run(x, first.payload, first.scale))(stack('x'))
    expected = np.stack([c.x @ first.w for c in cases])
    self.assertLess(_distance(y, expected), 2e-6)
    y = jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None))(
      stack('x'), stack('payload'), stack('scale')
    )
    expected = np.stack([[c.x @ d.w for d in cases] for c in cases])
    self.assertLess(_distance(y, expected), 2e-6)

  def test_calls_from_many_threads(self):
    """Helpers that wait for the next product find that of any thread."""
    cases = [Case('int8', (m, 512, 1024, 512), seed=m) for m in (1, 2, 9, 40)]

    def turn(case):
      first = None
      for i in range(200):
        y = case.run(Act.DYNAMIC)
        first = y if first is None else first
        np.testing.assert_array_equal(y, first)
        if i % 50 == 0:
          time.sleep(1e-3)  # longer than helpers wait
      return first

    with futures.ThreadPoolExecutor(len(cases)) as pool:
      results = list(pool.map(turn, cases))
    for case, y in zip(cases, results, strict=True):
      self.assertLess(_distance(y, case.x @ case.w), 0.02)

  def test_wrong_shapes_are_refused(self):
    case = Case('int4', (3, 64, 40, 32))
    with self.assertRaisesRegex(Exception, 'shapes do not fit'):
      case.run(Act.FLOAT, x=np.ones((3, 63), np.float32))
    with self.assertRaisesRegex(Exception, 'no instruction path'):
      case.run(Act.FLOAT, path='avx-9000')

  def test_weights_that_round_differently_are_refused(self):
    case = Case('int8', (3, 64, 40, 64))
    one, other = (
      native.Weight(
        case.payload,
        jnp.asarray(case.scale),
        case.n,
        rounding=native.Rounding(act=Act.DYNAMIC, bound=bound),
      )
      for bound in (127.0, 127.5)
    )
    how = dict(format='int8', k=64, group=64)
    native.matmuls(jnp.asarray(case.x), [one, one], **how)
    with self.assertRaisesRegex(ValueError, 'differently'):
      native.matmuls(jnp.asarray(case.x), [one, other], **how)

  def test_a_norm_is_not_kept_by_matmuls_of_no_columns(self):
    case = Case('int8', (3, 64, 40, 64))
    none = native.Weight(case.payload[:0], jnp.zeros((1, 0)), 0)
    norm = norms.Norm(jnp.ones(64), None, 1e-6)
    with self.assertRaisesRegex(Exception, 'no product to keep the norm of'):
      jax.block_until_ready(
        native.matmuls(
          jnp.asarray(case.x),
          [none],
          norm,
          format='int8',
          k=64,
          group=64,
          keep=True,
        )
      )

  def test_results_that_cannot_be_finished(self):
    case = Case('int8', (3, 64, 40, 64))
    with self.assertRaisesRegex(Exception, 'no curve cube'):
      case.run(Act.FLOAT, finish=native.Finish(curve='cube'))
    half = native.Finish(other=jnp.zeros((3, 40), jnp.bfloat16))
    with self.assertRaisesRegex(Exception, 'does not fit the type'):
      case.run(Act.FLOAT, finish=half)

  @parameterized.parameters(*sorted({curves.kernel(c) for c in curves.CURVES}))
  def test_the_library_has_every_curve(self, name):
    case = Case('int8', (3, 64, 40, 64))
    y = case.run(Act.FLOAT, finish=native.Finish(curve=name))
    want = curves.CURVES[name](case.run(Act.FLOAT))
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)

  def test_without_the_library(self):
    case = Case('int4', (3, 64, 40, 32))
    with mock.patch.object(native, 'available', lambda: False):
      with self.assertRaisesRegex(RuntimeError, 'GCC 11, Clang 12 or newer'):
        case.run(Act.FLOAT)


class LibraryTest(absltest.TestCase):
  def test_a_library_of_other_sources_is_refused(self):
    """Its calls would have other operands: XLA's own error would not say why."""
    library = mock.Mock(jaxopt_compress_interface=lambda: -1)
    with mock.patch.object(native.ctypes, 'CDLL', return_value=library):
      with self.assertRaisesRegex(RuntimeError, 'other sources.*pip install'):
        native._registered('_kernels.so')

  def test_so_is_one_that_does_not_say(self):
    library = mock.Mock(spec=[])
    with mock.patch.object(native.ctypes, 'CDLL', return_value=library):
      with self.assertRaisesRegex(RuntimeError, 'other sources.*pip install'):
        native._registered('_kernels.so')


if __name__ == '__main__':
  absltest.main()
