"""Products and convolutions of random sizes on every instruction path.

Integers are equal to numpy's, numbers within the roundings of float32. Under
`tests/kernels/sanitize.sh` nothing is read or written outside of operands either, which
are arrays of exactly their sizes.
"""

import functools
import math
import os

from absl.testing import absltest
import fuzz_oracle as oracle
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import kernel_oracle
import numpy as np

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native

Act = native.Act

# An environment variable: examples of each test.
_MORE = os.environ.get('JAXOPT_COMPRESS_EXAMPLES')

SIZES = st.one_of(
  st.integers(1, 9),
  st.integers(1, 70),
  st.sampled_from((127, 128, 129, 257, 514, 1030)),
)
ROWS = st.one_of(st.integers(0, 9), st.integers(0, 40), st.just(130))
LEADS = st.lists(st.integers(1, 3), max_size=3).filter(
  lambda lead: math.prod(lead) < 9
)
EXTREMES = st.sampled_from(('any', 'any', 'low', 'high', 'both'))
SEEDS = st.integers(0, 2**32 - 1)
WHOLE = ('int8', 'int4', 'int3', 'int2', 'ternary')
BAD = st.sampled_from((None, None, None, np.nan, np.inf, -np.inf))


def examples(test):
  """Few, and the same each time; many, and others, where that is asked for."""
  few = int(_MORE or 30)
  return hypothesis.settings(
    max_examples=few,
    deadline=None,
    database=None,
    derandomize=not _MORE,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
  )(test)


@st.composite
def roundings(draw, acts=tuple(Act)):
  bound, low, high = draw(
    st.sampled_from(((127.5, -128, 127), (127, -127, 127), (7.5, -8, 7)))
  )
  return oracle.Rounding(
    act=draw(st.sampled_from(acts)),
    symmetric=draw(st.booleans()),
    bound=bound,
    low=low,
    high=high,
    scale=draw(st.sampled_from((0.03, 0.5))),
    zero=draw(st.sampled_from((None, 0, -128, 127, 5))),
    floor=draw(st.sampled_from((-np.inf, 0.0))),
  )


class Draws:
  """What is drawn of operands of a stack, by a seed."""

  def __init__(self, seed, lead):
    self.rng = np.random.default_rng(seed)
    self.lead = tuple(lead)

  def some(self) -> tuple[int, ...]:
    """Leading axes of an operand: fewer than the stack's, or of size one."""
    first = self.rng.integers(0, len(self.lead) + 1)
    return tuple(n if self.rng.random() < 0.7 else 1 for n in self.lead[first:])

  def whole(self, low, high, shape, extremes, dtype) -> np.ndarray:
    """Integers low to high."""
    if extremes == 'any':
      x = self.rng.integers(low, high, shape, endpoint=True)
    else:
      ends = {'low': [low], 'high': [high], 'both': [low, high]}[extremes]
      x = self.rng.choice(ends, shape)
    return x.astype(dtype)

  def codes(self, name, shape, extremes) -> np.ndarray:
    most = 2 if name == 'ternary' else 2 ** layout.CODES[name].bits - 1
    return self.whole(0, most, shape, extremes, np.uint8)

  def numbers(self, shape, dtype='float32', center=0.0) -> np.ndarray:
    return self.rng.normal(center, 1, shape).astype(dtype)

  def x(self, how, shape, dtype, extremes, bad) -> np.ndarray:
    """The other operand: codes, or numbers, one of them bad."""
    if how.act is Act.CODES:
      return self.whole(-128, 127, shape, extremes, np.int8)
    x = self.numbers(shape, center=self.rng.choice([-0.5, 0, 0.5]))
    x *= self.rng.choice([0, 1e-3, 1, 1e5])
    if bad is not None and x.size:
      x.reshape(-1)[self.rng.integers(x.size)] = bad
    return x.astype(dtype)

  def of_columns(self, how, inner) -> dict[str, np.ndarray | None]:
    """Scales and what goes with them: [..., *inner], where inner ends in (groups, n)."""
    rng = self.rng
    *outer, _, n = inner
    maybe = lambda p: p if rng.random() < 0.6 else None
    types = ['float32', jnp.bfloat16, jnp.float8_e8m0fnu]
    scale = rng.uniform(0.5, 1.5, (*self.some(), *inner))
    zero = rng.integers(-3, 4, (*self.some(), *inner))
    one = lambda: self.numbers((*self.some(), *outer, 1, n))
    given = lambda value: np.full((*self.some(), 1, 1), value, np.float32)
    p = dict.fromkeys(
      ('scale', 'zero', 'totals', 'bias', 'act_scale', 'act_zero')
    )
    if how.act is not Act.CODES:
      p['scale'] = scale.astype(types[rng.integers(3)])
      p['zero'] = maybe(zero.astype(rng.choice(['float32', 'int8'])))
      p['totals'], p['bias'] = one() * 50, maybe(one())
    if how.act is Act.STATIC:
      p['act_scale'] = given(how.scale)
      p['act_zero'] = None if how.zero is None else given(how.zero)
    return p

  def stack(self):
    return np.ndindex(*self.lead)

  def at(self, p, inner, index, default=None):
    """Of an operand with `inner` axes of its own, those of an entry of the stack."""
    if p is None:
      return default
    own = p.shape[p.ndim - inner :]
    wide = np.broadcast_to(p, (*self.lead, *own))[index]
    return wide if wide.dtype == np.int8 else np.float64(wide)


def stacked(f, p, inner):
  """`f` of each entry of a stack."""
  lead = p.shape[: p.ndim - inner]
  flat = [f(a) for a in p.reshape(-1, *p.shape[p.ndim - inner :])]
  return np.stack(flat).reshape(*lead, *flat[0].shape)


def records(how, finish, p):
  """What a call is given of operands `p`, besides x, the weight and its scales."""
  return dict(
    zero=p['zero'],
    rounding=native.Rounding(
      p['act_scale'],
      p['act_zero'],
      p['totals'],
      how.act,
      how.bound,
      how.low,
      how.high,
      how.symmetric,
    ),
    finish=native.Finish(
      p['bias'], finish.other, finish.curve, finish.times, how.floor
    ),
  )


def finish_of(draws, how, shape, out) -> oracle.Finish:
  """What becomes of results [*lead, *shape] of a dtype."""
  if how.act is Act.CODES:
    return oracle.Finish()
  rng = draws.rng
  other = draws.numbers((*draws.some(), *shape)) * rng.choice([0, 1, 1e3])
  return oracle.Finish(
    curve=str(rng.choice(['', '', 'gelu', 'silu'])),
    other=other.astype(out) if rng.random() < 0.5 else None,
    times=bool(rng.integers(2)),
  )


def on_paths(call, operands, known):
  """Results of a call on each path: {path: array}."""
  run = lambda operands, known: [
    call(*operands, **known, path=p) for p in native.paths()
  ]
  results = jax.jit(run)(operands, known)
  return dict(zip(native.paths(), map(np.asarray, results)))


def compare(results, candidates, how, finish=None):
  """With what oracles say: [(expected, bound)], of which one has to be right."""
  for path, y in results.items():
    if how.act is Act.CODES:
      np.testing.assert_array_equal(y, candidates[0][0], path)
      continue
    rounding = 2.0**-8 if y.dtype != np.float32 else 0.0
    y = np.float64(y)
    wrong = []
    for expected, bound in candidates:
      expected, bound = (finish or oracle.Finish())(expected, bound)
      with np.errstate(invalid='ignore'):
        bound = bound + rounding * np.abs(expected) + 1e-30
        expected = np.maximum(expected, how.floor)
        right = np.abs(y - expected) <= bound
      right |= (y == expected) | (np.isnan(y) & np.isnan(expected))
      if finish is not None and finish.curve:
        right |= ~np.isfinite(y) & ~np.isfinite(expected)
      wrong.append(np.argwhere(~right))
    best = min(range(len(wrong)), key=lambda i: len(wrong[i]))
    if len(wrong[best]):
      at = tuple(wrong[best][0])
      expected, bound = (finish or oracle.Finish())(*candidates[best])
      expected, bound = expected[at], bound[at]
      raise AssertionError(
        f'{path}: {y[at]} at {at} of {y.shape}, not {expected} to {bound};'
        f' {len(wrong[best])} are wrong.'
      )


def ways(how):
  """Whether zero points are rounded once: where both give the same, one will do."""
  both = how.act is Act.DYNAMIC and not how.symmetric
  return (False, True) if both else (False,)


def result_of(draws, how):
  if how.act is Act.CODES:
    return jnp.int32
  return (jnp.float32, jnp.bfloat16)[draws.rng.integers(2)]


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


PRODUCT = dict(
  seed=SEEDS,
  lead=LEADS,
  m=ROWS,
  k=SIZES,
  n=SIZES,
  group=SIZES,
  x_type=st.sampled_from(('float32', jnp.bfloat16)),
  extremes=EXTREMES,
  bad=BAD,
)


def expected_products(draws, x, w, p, how, group, n, in_floats=False):
  """[(results, bound)] of a stack: [..., m, n]."""
  found = []
  for fused in ways(how):
    y, bound = np.zeros((2, *draws.lead, x.shape[-2], n))
    for i in draws.stack():
      rows = oracle.rounded(
        np.broadcast_to(x, draws.lead + x.shape[-2:])[i], how, fused
      )
      ones = np.ones((-(-w.shape[-2] // group), n))
      y[i], bound[i] = oracle.product(
        rows,
        draws.at(w, 2, i).astype(np.float64),
        scale=draws.at(p['scale'], 2, i, ones),
        zero=draws.at(p['zero'], 2, i, 0 * ones),
        group=group,
        totals=draws.at(p['totals'], 2, i, 0 * ones[:1]),
        bias=draws.at(p['bias'], 2, i, 0 * ones[:1]),
        in_floats=in_floats,
      )
    found.append((y, bound))
  return found


class FuzzTest(absltest.TestCase):
  @examples
  @hypothesis.given(
    name=st.sampled_from(tuple(layout.CODES)), how=roundings(), **PRODUCT
  )
  def test_matmul(
    self, seed, lead, m, k, n, group, x_type, extremes, bad, name, how
  ):
    if name == 'nf4':
      how = how._replace(act=Act.FLOAT)
    if how.act is Act.CODES:
      name = WHOLE[seed % len(WHOLE)]
      group = k
    group = min(group, k)
    draws = Draws(seed, lead)
    codes = draws.codes(name, (*draws.some(), k, n), extremes)
    x = draws.x(how, (*draws.lead, m, k), x_type, extremes, bad)
    p = draws.of_columns(how, (-(-k // group), n))
    w = stacked(lambda c: oracle.panels(c, name, group), codes, 2)
    out = result_of(draws, how)
    call = lambda x, w, scale, **known: native.matmul(
      x,
      w,
      scale,
      format=name,
      k=k,
      n=n,
      group=group,
      out_dtype=out,
      **known,
    )
    finish = finish_of(draws, how, (m, n), out)
    got = on_paths(call, (x, w, p['scale']), records(how, finish, p))
    w = kernel_oracle.numbers(codes, name)
    compare(
      got,
      expected_products(draws, x, w, p, how, group, n, name == 'nf4'),
      how,
      finish,
    )

  @examples
  @hypothesis.given(
    dtype=st.sampled_from(('int8', 'bfloat16', 'float32')),
    kept=st.sampled_from((0.0, 0.02, 0.3, 0.5, 1.0)),
    skips=st.sampled_from((None, False, True)),
    constant=st.sampled_from((None, False, True)),
    junk=st.sampled_from((False, False, True)),
    how=roundings(),
    **PRODUCT,
  )
  def test_sparse_matmul(
    self,
    seed,
    lead,
    m,
    k,
    n,
    group,
    x_type,
    extremes,
    bad,
    dtype,
    kept,
    skips,
    constant,
    junk,
    how,
  ):
    floats = dtype != 'int8'
    if floats:
      how = how._replace(act=Act.FLOAT)
    group = k if floats or how.act is Act.CODES else min(group, k)
    draws = Draws(seed, lead)
    w = draws.whole(-128, 127, (*draws.some(), k, n), extremes, np.int8)
    w = (w * (draws.rng.random(w.shape) < kept)).astype(dtype)
    stream, offsets, of = sparse_layout.to_streams(
      w, group, skips=skips, constant=constant
    )
    if junk:  # gives anything, and reads nothing else
      stream = draws.rng.integers(0, 256, stream.shape, np.uint8)
    x = draws.x(how, (*draws.lead, m, k), x_type, extremes, bad)
    p = draws.of_columns(how, (-(-k // group), n))
    if floats:
      p.update(scale=None, zero=None, totals=None)
    out = result_of(draws, how)
    call = lambda x, stream, offsets, scale, **known: native.sparse_matmul(
      x,
      stream,
      offsets,
      scale,
      how=of,
      k=k,
      n=n,
      group=group,
      out_dtype=out,
      **known,
    )
    finish = finish_of(draws, how, (m, n), out)
    known = records(how, finish, p)
    got = on_paths(call, (x, stream, offsets, p['scale']), known)
    if not junk:
      expected = expected_products(draws, x, w, p, how, group, n, floats)
      compare(got, expected, how, finish)

  @examples
  @hypothesis.given(
    name=st.sampled_from(tuple(layout.CODES)),
    features=st.integers(1, 3),
    own=st.sampled_from((1, 2, 3, 4, 5, 16, 17, 32, 33)),
    n=st.sampled_from((1, 3, 8, 31, 32, 33, 65)),
    group=SIZES,
    **(
      IMAGES := dict(
        seed=SEEDS,
        lead=LEADS.filter(lambda lead: math.prod(lead) < 4),
        images=st.integers(0, 3),
        sizes=st.tuples(st.integers(0, 9), st.integers(0, 9)),
        window=st.tuples(st.integers(1, 4), st.integers(1, 5)),
        strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        lhs_dilation=st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (2, 2))),
        rhs_dilation=st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (2, 2))),
        padding=st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * 2),
        x_type=st.sampled_from(('float32', jnp.bfloat16)),
        extremes=EXTREMES,
        bad=BAD,
        how=roundings(),
      )
    ),
  )
  def test_conv(
    self,
    name,
    features,
    own,
    n,
    group,
    seed,
    lead,
    images,
    sizes,
    window,
    x_type,
    extremes,
    bad,
    how,
    **geometry,
  ):
    k = math.prod(window) * own
    if name == 'nf4':
      how = how._replace(act=Act.FLOAT)
    if how.act is Act.CODES:
      name = WHOLE[seed % len(WHOLE)]
      group = k
    group = min(group, k)
    draws = Draws(seed, lead)
    outer = (features,) if features > 1 else ()
    codes = draws.codes(name, (*draws.some(), *outer, k, n), extremes)
    shape = (*draws.lead, images, *sizes, features * own)
    x = draws.x(how, shape, x_type, extremes, bad)
    p = draws.of_columns(how, (*outer, -(-k // group), n))
    w = stacked(lambda c: oracle.panels(c, name, group), codes, 2)
    out = result_of(draws, how)
    call = lambda x, w, scale, **known: conv.conv(
      x,
      w,
      scale,
      windows=conv.Windows(window, **geometry),
      format=name,
      n=n,
      group=group,
      feature_groups=features,
      out_dtype=out,
      **known,
    )
    known = records(how, oracle.Finish(), p)
    alike = jax.eval_shape(functools.partial(call, **known), x, w, p['scale'])
    finish = finish_of(draws, how, alike.shape[-4:], out)
    got = on_paths(call, (x, w, p['scale']), records(how, finish, p))

    inner, found = 2 + len(outer), []
    numbers = kernel_oracle.numbers(codes, name)
    for fused in ways(how):
      y, bound = np.zeros((2, *next(iter(got.values())).shape))
      for i in draws.stack() if y.size else ():
        rows, shape = rows_of(x[i], how, fused, window, geometry)
        for f in range(features):
          of = slice(f * own, (f + 1) * own)
          mine = rows._replace(
            codes=rows.codes[..., of].reshape(len(rows.codes), k)
          )
          ones = np.ones((*outer, -(-k // group), n))
          pick = lambda q, rest, i=i, f=f: draws.at(q, inner, i, rest)[
            f if outer else ...
          ]
          results = oracle.product(
            mine,
            pick(numbers, None),
            scale=pick(p['scale'], ones),
            zero=pick(p['zero'], 0 * ones),
            group=group,
            totals=pick(p['totals'], 0 * ones[..., :1, :]),
            bias=pick(p['bias'], 0 * ones[..., :1, :]),
            in_floats=name == 'nf4',
          )
          columns = slice(f * n, (f + 1) * n)
          y[i][..., columns] = results[0].reshape(*shape, n)
          bound[i][..., columns] = results[1].reshape(*shape, n)
      found.append((y, bound))
    compare(got, found, how, finish)

  @examples
  @hypothesis.given(
    channels=st.one_of(st.integers(1, 9), st.sampled_from((16, 31, 33, 70))),
    repeats=st.sampled_from((1, 1, 2, 3)),
    **IMAGES,
  )
  def test_depthwise(
    self,
    channels,
    repeats,
    seed,
    lead,
    images,
    sizes,
    window,
    x_type,
    extremes,
    bad,
    how,
    **geometry,
  ):
    n = channels * repeats
    draws = Draws(seed, lead)
    w = draws.whole(-128, 127, (*draws.some(), *window, n), extremes, np.int8)
    x = draws.x(
      how, (*draws.lead, images, *sizes, channels), x_type, extremes, bad
    )
    p = draws.of_columns(how, (1, n))
    p['totals'] = None
    out = result_of(draws, how)
    call = lambda x, w, scale, **known: conv.depthwise(
      x,
      w,
      scale,
      windows=conv.Windows(window, **geometry),
      n=n,
      out_dtype=out,
      **known,
    )
    known = records(how, oracle.Finish(), p)
    got = on_paths(call, (x, stacked(oracle.quads, w, 3), p['scale']), known)

    found = []
    for fused in ways(how):
      y, bound = np.zeros((2, *next(iter(got.values())).shape))
      for i in draws.stack() if y.size else ():
        rows, shape = rows_of(x[i], how, fused, window, geometry)
        codes = np.repeat(rows.codes, repeats, -1)
        codes = codes.reshape(len(codes), math.prod(window), n)
        ones = np.ones((1, n))
        results = oracle.apart(
          rows._replace(codes=codes),
          np.float64(draws.at(w, 3, i)).reshape(-1, n),
          scale=draws.at(p['scale'], 2, i, ones),
          zero=draws.at(p['zero'], 2, i, 0 * ones),
          bias=draws.at(p['bias'], 2, i, 0 * ones),
        )
        y[i], bound[i] = (r.reshape(*shape, n) for r in results)
      found.append((y, bound))
    compare(got, found, how)

  @examples
  @hypothesis.given(
    which=st.sampled_from(
      ('x', 'w', 'scale', 'zero', 'totals', 'bias', 'other')
    ),
    axis=st.integers(1, 3),
    more=st.sampled_from((-1, 1)),
    seed=SEEDS,
  )
  def test_what_does_not_fit_is_refused(self, which, axis, more, seed):
    m, k, n, group = 3, 37, 40, 20
    draws = Draws(seed, ())
    codes = draws.codes('int4', (k, n), 'any')
    arrays = dict(
      x=draws.numbers((m, k)),
      w=oracle.panels(codes, 'int4', group),
      scale=draws.numbers((2, n)),
      zero=draws.numbers((2, n)),
      totals=draws.numbers((1, n)),
      bias=draws.numbers((1, n)),
      other=draws.numbers((m, n)),
    )
    shape = list(arrays[which].shape)
    axis = -min(axis, len(shape))
    # Any number of rows will do, and what has none is as if it were not there.
    hypothesis.assume(which != 'x' or axis == -1)
    hypothesis.assume(shape[axis] + more > 0)
    shape[axis] += more
    arrays[which] = np.resize(arrays[which], shape)
    for path in native.paths():
      with self.assertRaisesRegex(Exception, 'jaxopt_compress: .*fit'):
        y = native.matmul(
          arrays['x'],
          arrays['w'],
          arrays['scale'],
          arrays['zero'],
          native.Rounding(totals=arrays['totals']),
          native.Finish(arrays['bias'], arrays['other']),
          format='int4',
          k=k,
          n=n,
          group=group,
          path=path,
        )
        y.block_until_ready()


def rows_of(x, how, fused, window, geometry):
  """Windows as rows of codes [rows, taps y, taps x, channels], and their shape."""
  rows = oracle.rounded(x.reshape(len(x), -1), how, fused)
  codes = oracle.windows(
    rows.codes.reshape(x.shape), rows.zero, window, **geometry
  )
  shape = codes.shape[:3]
  each = lambda p: np.repeat(p, shape[1] * shape[2], axis=0)
  return (
    oracle.Rows(
      codes.reshape(-1, *codes.shape[3:]),
      each(rows.scale),
      each(rows.zero),
      each(rows.off),
    ),
    shape,
  )


if __name__ == '__main__':
  absltest.main()
