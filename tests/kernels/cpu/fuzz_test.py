"""Products and convolutions of random sizes on every instruction path.

Integers are equal to numpy's, numbers within the roundings of float32. Under
`tests/kernels/sanitize.sh` nothing is read or written outside of operands either, which
are arrays of exactly their sizes.
"""

import functools

from absl.testing import absltest
import fuzz_draws
import fuzz_oracle as oracle
import hypothesis
from hypothesis import strategies as st
import kernel_oracle
import numpy as np
import sparse_cases

from jaxopt_compress.kernels import layout
from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.kernels.cpu import native

Act = native.Act


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class FuzzTest(absltest.TestCase):
  @fuzz_draws.examples
  @hypothesis.given(
    name=st.sampled_from(tuple(layout.CODES)),
    how=fuzz_draws.roundings(),
    **fuzz_draws.PRODUCT,
  )
  def test_matmul(
    self, seed, lead, m, k, n, group, x_type, extremes, bad, name, how
  ):
    name, how, group = fuzz_draws.that_go_together(name, how, group, k, seed)
    draws = fuzz_draws.Draws(seed, lead)
    codes = draws.codes(name, (*draws.some(), k, n), extremes)
    x = draws.x(how, (*draws.lead, m, k), x_type, extremes, bad)
    p = draws.of_columns(how, (-(-k // group), n))
    w = fuzz_draws.stacked(lambda c: oracle.panels(c, name, group), codes, 2)
    out = fuzz_draws.result_of(draws, how)
    call = functools.partial(
      native.matmul,
      format=name,
      k=k,
      n=n,
      group=group,
      out_dtype=out,
    )
    finish = fuzz_draws.finish_of(draws, how, (m, n), out)
    got = fuzz_draws.on_paths(
      call, (x, w, p['scale']), fuzz_draws.records(how, finish, p)
    )
    w = kernel_oracle.numbers(codes, name)
    fuzz_draws.compare(
      got,
      fuzz_draws.expected_products(
        draws, x, w, p, how, group, n, name == 'nf4'
      ),
      how,
      finish,
    )

  @fuzz_draws.examples
  @hypothesis.given(
    dtype=st.sampled_from(('int8', 'bfloat16', 'float32')),
    kept=st.sampled_from((0.0, 0.02, 0.3, 0.5, 1.0)),
    skips=st.sampled_from((None, False, True)),
    constant=st.sampled_from((None, False, True)),
    junk=st.sampled_from((False, False, True)),
    how=fuzz_draws.roundings(),
    **fuzz_draws.PRODUCT,
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
    draws = fuzz_draws.Draws(seed, lead)
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
    out = fuzz_draws.result_of(draws, how)
    call = functools.partial(
      sparse_cases.sparse_matmul,
      how=of,
      k=k,
      n=n,
      group=group,
      out_dtype=out,
    )
    finish = fuzz_draws.finish_of(draws, how, (m, n), out)
    known = fuzz_draws.records(how, finish, p)
    got = fuzz_draws.on_paths(call, (x, stream, offsets, p['scale']), known)
    if not junk:
      expected = fuzz_draws.expected_products(
        draws, x, w, p, how, group, n, floats
      )
      fuzz_draws.compare(got, expected, how, finish)

  @fuzz_draws.examples
  @hypothesis.given(
    which=st.sampled_from(
      ('x', 'w', 'scale', 'zero', 'totals', 'bias', 'other', 'after')
    ),
    axis=st.integers(1, 3),
    more=st.sampled_from((-1, 1)),
    seed=fuzz_draws.SEEDS,
  )
  def test_what_does_not_fit_is_refused(self, which, axis, more, seed):
    m, k, n, group = 3, 37, 40, 20
    draws = fuzz_draws.Draws(seed, ())
    codes = draws.codes('int4', (k, n), 'any')
    arrays = dict(
      x=draws.numbers((m, k)),
      w=oracle.panels(codes, 'int4', group),
      scale=draws.numbers((2, n)),
      zero=draws.numbers((2, n)),
      totals=draws.numbers((1, n)),
      bias=draws.numbers((1, n)),
      other=draws.numbers((m, n)),
      after=draws.numbers((2, n)),
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
          native.Finish(arrays['bias'], arrays['other'], after=arrays['after']),
          format='int4',
          k=k,
          n=n,
          group=group,
          path=path,
        )
        y.block_until_ready()


if __name__ == '__main__':
  absltest.main()
