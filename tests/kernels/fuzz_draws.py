"""What the tests of random calls draw, and how results are compared."""

import math
import os

import fuzz_oracle as oracle
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels import layout
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


def that_go_together(name, how, group, k, seed):
  """(format, rounding, rows of a group) as drawn, or the nearest that kernels have."""
  if name == 'nf4':
    how = how._replace(act=Act.FLOAT)
  if how.act is Act.CODES:
    return WHOLE[seed % len(WHOLE)], how, k
  return name, how, min(group, k)


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
    types = ['float32', jnp.bfloat16, jnp.float8_e8m0fnu, jnp.float8_e4m3fn]
    scale = rng.uniform(0.5, 1.5, (*self.some(), *inner))
    zero = rng.integers(-3, 4, (*self.some(), *inner))

    def maybe(p):
      return p if rng.random() < 0.6 else None

    def of_each_column():
      return self.numbers((*self.some(), *outer, 1, n))

    def given(value):
      return np.full((*self.some(), 1, 1), value, np.float32)

    p = dict.fromkeys(
      ('scale', 'zero', 'totals', 'bias', 'act_scale', 'act_zero')
    )
    if how.act is not Act.CODES:
      p['scale'] = scale.astype(types[rng.integers(4)])
      p['zero'] = maybe(zero.astype(rng.choice(['float32', 'int8'])))
      p['totals'] = of_each_column() * 50
      p['bias'] = maybe(of_each_column())
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


def records(how, finish, p, features=1):
  """What a call is given of operands `p`, besides x, the weight and its scales."""
  after = finish.after
  if after is not None and features > 1:
    after = np.stack(np.split(after, features, -1), -3)
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
      p['bias'], finish.other, finish.curve, finish.times, how.floor, after
    ),
  )


def finish_of(draws, how, shape, out) -> oracle.Finish:
  """What becomes of results [*lead, *shape] of a dtype."""
  if how.act is Act.CODES:
    return oracle.Finish()
  rng = draws.rng
  other = draws.numbers((*draws.some(), *shape)) * rng.choice([0, 1, 1e3])
  after = draws.numbers((*draws.some(), 2, shape[-1]))
  return oracle.Finish(
    curve=str(rng.choice(['', '', *oracle.CURVES])),
    other=other.astype(out) if rng.random() < 0.5 else None,
    times=bool(rng.integers(2)),
    after=after if rng.random() < 0.4 else None,
    inner=len(shape),
  )


def on_paths(call, operands, known):
  """Results of a call on each path: {path: array}."""

  def run(operands, known):
    return [call(*operands, **known, path=p) for p in native.paths()]

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
