"""Leaves for tests, made without a scheme."""

import jax.numpy as jnp

from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import spec


def leaf(w, format, shared, *, axis, group=0, scale_dtype=jnp.float32):
  """One scale along `shared` axes, or for every `group` entries of `axis`."""
  how = spec.Spec(
    format,
    'group' if group else 'channel',
    group,
    scale=jnp.dtype(scale_dtype).name,
  )
  blocks = tuple(sorted((a, group if a == axis else 0) for a in shared))
  return qarray.quantize_array(w, how, blocks, packed=axis)
