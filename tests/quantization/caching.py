"""Caches for tests: how rows are rounded, in numpy, and by how much at most."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxopt_compress as jc

FORMATS = ('int8', 'e4m3', 'e5m2')


LARGEST = {'int8': 127.5, 'e4m3': 448.0, 'e5m2': 57344.0}


def rounded(x, name, np=np):
  """Rows of x as they are read back; with np=jnp, inside a program."""
  scale = np.abs(x).max(-1, keepdims=True) * np.float32(1 / LARGEST[name])
  scale = np.maximum(scale, np.finfo(np.float32).tiny)
  y = x * (1 / scale)  # where ties fall is part of the definition
  if name == 'int8':
    return np.clip(np.round(y), -128, 127) * scale
  dtype = dict(e4m3='float8_e4m3fn', e5m2='float8_e5m2')[name]
  y = np.clip(y, -LARGEST[name], LARGEST[name])
  return y.astype(getattr(ml_dtypes, dtype)).astype(np.float32) * scale


def bound(x, name):
  """What the docstring of QCache promises of each entry."""
  reach = np.abs(x).max(-1, keepdims=True)
  if name == 'int8':
    return reach / 255
  bits, least = {'e4m3': (4, 10), 'e5m2': (3, 17)}[name]
  return np.maximum(np.abs(x) * 2.0**-bits, reach * 2.0**-least / LARGEST[name])


def random(*shape, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  # Rows of sizes from 1e-3 to 1e3, entries over five orders of magnitude.
  sizes = 10.0 ** np.random.default_rng(seed + 1).uniform(-3, 3, shape[:-1])
  return (x**3 * sizes[..., None]).astype(np.float32)


def cache(x, name='int8'):
  return jc.quantization.quantize_cache({'k': jnp.asarray(x)}, [('k', name)])[
    'k'
  ]


def parts(cache):
  return [np.asarray(p) for p in jax.tree.leaves(cache)]
