"""Several weights and norms of random sizes on every instruction path.

Results are those of each weight alone, of the norm that is kept; and that is the norm
in float64, within the roundings of float32.
"""

from absl.testing import absltest
import fuzz_draws
import fuzz_oracle as oracle
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import kernel_oracle
import numpy as np

from jaxopt_compress.kernels import norms
from jaxopt_compress.kernels.cpu import native

Act = native.Act
_EPS = 2.0**-23


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


def _norm(draws, k, centered):
  """A norm, and its vectors of each entry of the stack."""

  def maybe(p):
    return p if draws.rng.random() < 0.7 else None

  scale = maybe(draws.numbers((*draws.some(), k)))
  shift = maybe(draws.numbers((*draws.some(), k)))
  return norms.Norm(scale, shift, 1e-5, centered)


def _normed(draws, norm, x):
  """(norm of rows, how far float32 may be off) in float64: [*lead, m, k]."""
  x = np.broadcast_to(np.float64(x), draws.lead + x.shape[-2:])
  y, bound = np.zeros((2, *x.shape))
  for i in draws.stack():
    rows = x[i]
    with np.errstate(invalid='ignore'):
      if norm.centered:
        rows = rows - rows.mean(-1, keepdims=True)
      deviation = np.sqrt((rows**2).mean(-1, keepdims=True) + norm.eps)
      most = np.abs(x[i]).max(-1, keepdims=True, initial=0)
      scale = draws.at(norm.scale, 1, i, 1.0)
      shift = draws.at(norm.shift, 1, i, 0.0)
      product = rows / deviation * scale
      # What the mean is off by, and all that is rounded after it. Divided by infinity,
      # all but infinity itself is zero.
      part = np.where(np.isinf(deviation), 0, most / deviation)
      bound[i] = 8 * _EPS * part * np.abs(scale)
      bound[i] += 16 * _EPS * (np.abs(product) + np.abs(shift))
      y[i] = product + shift
  return y, bound


def _on_paths(x, weights, norm, **how):
  """What each instruction path makes of several weights, in one program."""
  arrays = [w._replace(n=None, out_dtype=None, constant=None) for w in weights]

  @jax.jit
  def run(x, arrays, norm):
    passed = [
      a._replace(n=w.n, out_dtype=w.out_dtype, constant=0)
      for a, w in zip(arrays, weights, strict=True)
    ]
    return [
      native.matmuls(x, passed, norm, path=path, **how)
      for path in native.paths()
    ]

  return run(x, arrays, norm)


class FuzzProductsTest(absltest.TestCase):
  def _checked(self, path, kept, draws, norm, x):
    """The norm of rows that a call kept, which must be that of an oracle."""
    self.assertEqual(kept.dtype, x.dtype)
    rows = np.asarray(kept)
    y, bound = _normed(draws, norm, x)
    rounding = 2.0**-8 if x.dtype == jnp.bfloat16 else 0.0
    off = np.abs(np.float64(rows) - y)
    right = off <= bound + rounding * np.abs(y) + 1e-30
    right |= np.isnan(rows.astype(np.float32)) & ~np.isfinite(y)
    self.assertTrue(right.all(), path)
    return rows

  @fuzz_draws.examples
  @hypothesis.given(
    name=st.sampled_from(('int8', 'int8', 'int4', 'int3', 'e2m1', 'nf4')),
    how=fuzz_draws.roundings(),
    count=st.integers(1, 3),
    centered=st.sampled_from((None, False, True)),
    **fuzz_draws.PRODUCT,
  )
  def test_matmuls(
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
    name,
    how,
    count,
    centered,
  ):
    name, how, group = fuzz_draws.that_go_together(name, how, group, k, seed)
    draws = fuzz_draws.Draws(seed, lead)
    x = draws.x(how, (*draws.lead, m, k), x_type, extremes, bad)
    keep = centered is not None and how.act is not Act.CODES and m > 0
    norm = _norm(draws, k, centered) if keep else None
    weights, expectations = [], []
    for _ in range(count):
      # Ranges that are given may be the same of all weights, or not.
      mine = how._replace(scale=float(draws.rng.choice([0.03, 0.5])))
      columns = int(draws.rng.integers(1, n + 1))
      codes = draws.codes(name, (*draws.some(), k, columns), extremes)
      p = draws.of_columns(mine, (-(-k // group), columns))
      out = fuzz_draws.result_of(draws, mine)
      finish = fuzz_draws.finish_of(draws, mine, (m, columns), out)
      known = fuzz_draws.records(mine, finish, p)
      payload = fuzz_draws.stacked(
        lambda c: oracle.panels(c, name, group), codes, 2
      )
      weights.append(
        native.Weight(payload, p['scale'], columns, out_dtype=out, **known)
      )
      expectations.append((mine, columns, codes, p, finish))

    found = _on_paths(
      x, weights, norm, format=name, k=k, group=group, keep=keep
    )
    for path, got in zip(native.paths(), found, strict=True):
      rows = self._checked(path, got[-1], draws, norm, x) if keep else x
      for y, (mine, columns, codes, p, finish) in zip(got, expectations):
        w = kernel_oracle.numbers(codes, name)
        expected = fuzz_draws.expected_products(
          draws, rows, w, p, mine, group, columns, name == 'nf4'
        )
        fuzz_draws.compare({path: np.asarray(y)}, expected, mine, finish)


if __name__ == '__main__':
  absltest.main()
