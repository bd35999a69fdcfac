"""A loss of features against the equations of its paper, in float64 numpy.

The gradient is compared along random directions, with central differences of the
equations. Behind the mask there is NaN.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Examples 1 and 4 of six do not count.
EXAMPLES = np.array([1, 0, 1, 1, 0, 1], np.float32)


def values(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


@functools.cache
def compiled(loss, options):
  options = dict(options)

  def run(s, t, mask):
    total, count = loss(s, t, mask=mask, **options)
    return total, (total, count)

  return jax.jit(jax.grad(run, has_aux=True))


def run(loss, s, t, mask=None, **options):
  """(sum, count, gradient by the student), of float32."""
  s, t = jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32)
  mask = None if mask is None else jnp.asarray(mask)
  found = compiled(loss, tuple(options.items()))(s, t, mask)
  grads, (total, count) = found
  return total, count, grads


def check(loss, oracle, s, t, mask=None, tol=1e-5, **options):
  """`oracle(s, t, mask)` is (sum, count) of what counts, in float64."""
  want, count = oracle(s, t, mask)
  given = s, t
  if mask is not None:
    hidden = np.broadcast_to(
      mask.reshape(mask.shape + (1,) * (s.ndim - mask.ndim)),
      s.shape[:-1] + (1,),
    )
    given = np.where(hidden == 0, np.nan, s), t
  total, n, grads = run(loss, *given, mask, **options)
  np.testing.assert_allclose(total, want, rtol=tol, atol=tol)
  np.testing.assert_allclose(n, count)
  assert np.isfinite(grads).all()
  for seed in range(3):
    step = values(100 + seed, *s.shape)
    up, down = (oracle(s + e * step, t, mask)[0] for e in (1e-5, -1e-5))
    slope = (up - down) / 2e-5
    got = np.sum(np.asarray(grads, np.float64) * step)
    np.testing.assert_allclose(got, slope, rtol=20 * tol, atol=20 * tol)
