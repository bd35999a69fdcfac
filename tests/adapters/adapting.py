"""Adapted weights for tests, and the same arrays in numpy."""

import jax
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import uses as uses_lib

NF4 = jc.Scheme(jc.schemes.Spec('nf4', 'group', 4, scale='int8'))


def leaf(shape, contracted, stacked=(), *, base=NF4, rank=2, alpha=3.0):
  """A LoRA leaf with random factors, and the same array in numpy."""
  uses = {'w': (uses_lib.Use('dot_general', contracted, stacked, ''),)}
  keys = jax.random.split(jax.random.key(sum(shape)), 3)
  params = {'w': jax.random.normal(keys[0], shape)}
  if base is not None:
    params = jc.quantize(params, [('w', base)], uses)
  factors = jc.adapters.add_lora(params, [('w', rank)], uses, key=keys[1])
  factors['w']['b'] = jax.random.normal(keys[2], factors['w']['b'].shape)
  leaf = jc.adapters.with_lora(params, factors, uses, alpha=alpha)['w']
  dense = np.asarray(jc.materialize(params)['w'])
  factors = {name: np.asarray(f) for name, f in factors['w'].items()}
  return leaf, dense + alpha / rank * _matrix(
    factors, shape, contracted, stacked
  )


def _matrix(factors, shape, contracted, stacked):
  """a b as an array of that shape: matrices put back axis by axis."""
  ndim = len(shape)
  free = [a for a in range(-ndim, 0) if a not in (*contracted, *stacked)]
  order = [a + ndim for a in (*stacked, *sorted(contracted), *free)]
  flat = np.einsum('...ir,...ro->...io', factors['a'], factors['b'])
  return flat.reshape([shape[i] for i in order]).transpose(np.argsort(order))


def close(got, want, tolerance=1e-5):
  np.testing.assert_allclose(
    got, want, rtol=0, atol=tolerance * np.abs(want).max()
  )
