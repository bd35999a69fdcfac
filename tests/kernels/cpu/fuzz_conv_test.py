"""Convolutions of random sizes on every instruction path, as `fuzz_test` has products."""

import functools
import math

from absl.testing import absltest
import fuzz_draws
import fuzz_oracle as oracle
import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import kernel_oracle
import numpy as np

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels.cpu import conv
from jaxopt_compress.kernels.cpu import native

Act = native.Act


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class FuzzConvTest(absltest.TestCase):
  @fuzz_draws.examples
  @hypothesis.given(
    name=st.sampled_from(tuple(layout.CODES)),
    features=st.integers(1, 3),
    own=st.sampled_from((1, 2, 3, 4, 5, 16, 17, 32, 33)),
    n=st.sampled_from((1, 3, 8, 31, 32, 33, 65)),
    group=fuzz_draws.SIZES,
    **(
      IMAGES := dict(
        seed=fuzz_draws.SEEDS,
        lead=fuzz_draws.LEADS.filter(lambda lead: math.prod(lead) < 4),
        images=st.integers(0, 3),
        sizes=st.tuples(st.integers(0, 9), st.integers(0, 9)),
        window=st.tuples(st.integers(1, 4), st.integers(1, 5)),
        strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        lhs_dilation=st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (2, 2))),
        rhs_dilation=st.sampled_from(((1, 1), (1, 1), (2, 1), (1, 3), (2, 2))),
        padding=st.tuples(*[st.tuples(*[st.integers(0, 3)] * 2)] * 2),
        x_type=st.sampled_from(('float32', jnp.bfloat16)),
        extremes=fuzz_draws.EXTREMES,
        bad=fuzz_draws.BAD,
        how=fuzz_draws.roundings(),
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
    name, how, group = fuzz_draws.that_go_together(name, how, group, k, seed)
    draws = fuzz_draws.Draws(seed, lead)
    outer = (features,) if features > 1 else ()
    codes = draws.codes(name, (*draws.some(), *outer, k, n), extremes)
    shape = (*draws.lead, images, *sizes, features * own)
    x = draws.x(how, shape, x_type, extremes, bad)
    p = draws.of_columns(how, (*outer, -(-k // group), n))
    w = fuzz_draws.stacked(lambda c: oracle.panels(c, name, group), codes, 2)
    out = fuzz_draws.result_of(draws, how)
    windows = conv.Windows(window, **geometry)
    call = functools.partial(
      conv.conv,
      windows=windows,
      format=name,
      n=n,
      group=group,
      feature_groups=features,
      out_dtype=out,
    )
    shape = (images, *windows.count(*sizes), features * n)
    finish = fuzz_draws.finish_of(draws, how, shape, out)
    known = fuzz_draws.records(how, finish, p, features)
    got = fuzz_draws.on_paths(call, (x, w, p['scale']), known)
    for y in got.values():
      self.assertEqual(y.shape, (*draws.lead, *shape))
    if 0 in shape:
      return
    found = expected_convs(
      draws,
      x,
      kernel_oracle.numbers(codes, name),
      p,
      how,
      group,
      features,
      window,
      geometry,
      in_floats=name == 'nf4',
    )
    fuzz_draws.compare(got, found, how, finish)

  @fuzz_draws.examples
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
    draws = fuzz_draws.Draws(seed, lead)
    w = draws.whole(-128, 127, (*draws.some(), *window, n), extremes, np.int8)
    x = draws.x(
      how, (*draws.lead, images, *sizes, channels), x_type, extremes, bad
    )
    p = draws.of_columns(how, (1, n))
    p['totals'] = None
    out = fuzz_draws.result_of(draws, how)
    call = functools.partial(
      conv.depthwise,
      windows=conv.Windows(window, **geometry),
      n=n,
      out_dtype=out,
    )
    known = fuzz_draws.records(how, oracle.Finish(), p)
    got = fuzz_draws.on_paths(
      call, (x, fuzz_draws.stacked(oracle.quads, w, 3), p['scale']), known
    )

    found = []
    for fused in fuzz_draws.ways(how):
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
    fuzz_draws.compare(got, found, how)


def expected_convs(
  draws, x, w, p, how, group, features, window, geometry, in_floats
):
  """[(results, bound)] of a stack: [..., images, out y, out x, features].

  `w` has numbers [..., k, n], of several groups of features [..., features, k, n].
  """
  k, n = w.shape[-2:]
  outer = (features,) if features > 1 else ()
  ones = np.ones((*outer, -(-k // group), n))
  own = x.shape[-1] // features

  def part(q, if_missing, i, f):
    """What an operand has for entry i of the stack, group of features f."""
    q = draws.at(q, 2 + len(outer), i, if_missing)
    return q[f] if outer else q

  def expected(i, fused):
    rows, shape = rows_of(x[i], how, fused, window, geometry)
    found = []
    for f in range(features):
      codes = rows.codes[..., f * own : (f + 1) * own]
      results = oracle.product(
        rows._replace(codes=codes.reshape(len(rows.codes), k)),
        part(w, None, i, f),
        scale=part(p['scale'], ones, i, f),
        zero=part(p['zero'], 0 * ones, i, f),
        group=group,
        totals=part(p['totals'], 0 * ones[..., :1, :], i, f),
        bias=part(p['bias'], 0 * ones[..., :1, :], i, f),
        in_floats=in_floats,
      )
      found.append([r.reshape(*shape, n) for r in results])
    return [np.concatenate(parts, axis=-1) for parts in zip(*found)]

  return [
    stack_of(draws, [expected(i, fused) for i in draws.stack()])
    for fused in fuzz_draws.ways(how)
  ]


def stack_of(draws, found):
  """(results, bounds) [*lead, ...] of those of each entry of a stack."""
  return [
    np.stack(parts).reshape(*draws.lead, *parts[0].shape)
    for parts in zip(*found)
  ]


def rows_of(x, how, fused, window, geometry):
  """Windows as rows of codes [rows, taps y, taps x, channels], and their shape."""
  rows = oracle.rounded(x.reshape(len(x), -1), how, fused)
  codes = oracle.windows(
    rows.codes.reshape(x.shape), rows.zero, window, **geometry
  )
  shape = codes.shape[:3]

  def each(p):
    return np.repeat(p, shape[1] * shape[2], axis=0)

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
