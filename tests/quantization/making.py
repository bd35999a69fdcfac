"""What tests of products share: leaves made without a scheme, and oracles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

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


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def quantized(w, format, shared, axis, group=0):
  """A leaf, and what it stands for."""
  q = leaf(w, format, shared, axis=axis, group=group)
  return q, q.materialize()


def integer_oracle(x, axes):
  """(codes_x . codes_w) * s_x * s_w in numpy, for [..., k] times [k, n]."""
  x = np.asarray(x, np.float32)
  scale = np.abs(x).max(axes, keepdims=True) * np.float32(2 / 255)
  scale = np.maximum(scale, np.finfo(np.float32).tiny)
  codes = np.clip(np.rint(x * (np.float32(1) / scale)), -128, 127)
  return codes.astype(np.int64), scale


def dots(f, *args):
  """The dots of a traced function: [(lhs type, rhs type, result type)]."""
  eqns = jax.make_jaxpr(f)(*args).eqns
  found = []
  while eqns:
    eqn, *eqns = eqns
    if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
      values = (*eqn.invars, *eqn.outvars)
      found.append(tuple(str(v.aval.dtype) for v in values))
    for p in eqn.params.values():
      if hasattr(p, 'eqns'):
        eqns = [*p.eqns, *eqns]
      elif hasattr(p, 'jaxpr'):
        eqns = [*p.jaxpr.eqns, *eqns]
  return found
