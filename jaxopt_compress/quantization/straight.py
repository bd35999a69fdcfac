"""Straight through: one value, the derivative of another.

    y = out,   dy = d dense(args)

Rounding has a derivative of zero almost everywhere; what is trained, or
differentiated with respect to activations, takes that of the dense computation
instead (Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
"""

import functools

import jax
import jax.numpy as jnp

from jaxopt_compress.core import array


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def as_if(dense, out, *args):
  """`out`, differentiated as if it were `dense(*args)`."""
  del dense, args
  return out


@as_if.defjvp
def as_if_jvp(dense, primals, tangents):
  out, *args = primals
  varied, refill = array.arrays_apart(args, _has_zero)
  directions, _ = array.arrays_apart(list(tangents[1:]), _has_zero)

  def of_varied(*varied):
    return dense(*refill(varied))

  return out, jax.jvp(of_varied, varied, directions)[1]


def _has_zero(x):
  # A scale of e8m0 is a power of two. JAX hands over zeros as tangents of constants,
  # and they are NaN in this type.
  return getattr(x, 'dtype', None) != jnp.float8_e8m0fnu
