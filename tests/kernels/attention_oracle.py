"""Attention in float64, one query at a time, and random calls of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import attention
from jaxopt_compress.kernels.cpu import native


def expected(p: attention.Operands, form: attention.Form) -> np.ndarray:
  """[batch, T, heads, features], axes in the order `form.out`."""
  q = _ordered(p.query, form.query)
  k = _ordered(_numbers(p.key, p.key_scale, p.layer), form.key)
  v = _ordered(_numbers(p.value, p.value_scale, p.layer), form.value)
  (b, h, t, _), s, share = q.shape, k.shape[2], q.shape[1] // k.shape[1]
  k, v = np.repeat(k, share, 1), np.repeat(v, share, 1)
  with np.errstate(invalid='ignore'):
    x = np.einsum('bhtd,bhsd->bhts', q, k) * np.float64(np.float32(form.scale))
  if p.bias is not None:
    x = x + np.float64(p.bias)
  x = np.where(allowed(p, form, (b, h, t, s)), x, np.float32(form.masked))
  with np.errstate(invalid='ignore'):
    w = np.exp(x - x.max(-1, keepdims=True))
    out = np.einsum('bhts,bhsd->bhtd', w / w.sum(-1, keepdims=True), v)
  if p.query_lengths is not None:
    gone = np.arange(t)[None] >= np.asarray(p.query_lengths)[:, None]
    out[np.broadcast_to(gone[:, None], (b, h, t))] = 0.0
  return _ordered(out, form.out)


def allowed(p, form, shape) -> np.ndarray:
  """Which scores count: [batch, heads, T, S]."""
  _, _, t, s = shape
  query, key = np.arange(t)[:, None], np.arange(s)[None]
  sees = np.ones(shape, bool)
  if form.causal:
    sees &= key <= query
  if form.window is not None:
    sees &= (key >= query - form.window[0]) & (key <= query + form.window[1])
  if p.mask is not None:
    sees &= np.asarray(p.mask)
  if p.key_lengths is not None:
    sees &= key < np.asarray(p.key_lengths)[:, None, None, None]
  if p.query_lengths is not None:
    sees &= query < np.asarray(p.query_lengths)[:, None, None, None]
  return sees


def _numbers(x, scale, layer):
  x = np.float64(x)
  scale = 1.0 if scale is None else np.float64(scale)
  if layer is None:
    return x * scale
  wide = np.broadcast_to(scale, x.shape)
  layer = int(layer)
  layer = np.clip(layer + len(x) * (layer < 0), 0, len(x) - 1)
  return x[layer] * wide[layer]


def _ordered(x, order):
  return np.float64(x).transpose([order.index(axis) for axis in 'bhtd'])


class Draw:
  """A random call: operands with an axis of `lead` entries, if it is not 0."""

  def __init__(self, seed, *, lead, sizes, form, types, has, codes, layers):
    self.rng, self.lead, self.form = np.random.default_rng(seed), lead, form
    b, t, s, heads, share, d, dv = sizes
    n = heads * share
    layer = (layers,) if layers else ()
    key, value = (
      self._cached(layer, dict(b=b, t=s, h=heads, d=of), order, codes, types)
      for of, order in ((d, form.key), (dv, form.value))
    )
    query = self._normal(*_sizes(dict(b=b, t=t, h=n, d=d), form.query))
    bias = self._normal(*self._some(b, n, t, s)) if 'bias' in has else None
    mask = None
    if 'mask' in has:
      mask = self.rng.random(self._batch(self._some(b, n, t, s))) < 0.7
    if 'mask of keys' in has:
      mask = self.rng.random(self._batch((1, 1, 1, s))) < 0.7
      mask[..., 0] = False
    self.operands = attention.Operands(
      query.astype(types[0]),
      key[0],
      value[0],
      bias=None if bias is None else bias.astype(types[1]),
      mask=mask,
      query_lengths=self._lengths(b, t) if 'query' in has else None,
      key_lengths=self._lengths(b, s) if 'key' in has else None,
      key_scale=key[1],
      value_scale=value[1],
      layer=self._layer(layers) if layers else None,
    )

  def _batch(self, shape):
    own = self.lead and self.rng.random() < 0.7
    return ((self.lead,) if own else ()) + tuple(shape)

  def _some(self, *shape):
    return [n if self.rng.random() < 0.5 else 1 for n in shape]

  def _normal(self, *shape):
    return self.rng.normal(0, 1, self._batch(shape)).astype(np.float32)

  def _lengths(self, b, most):
    lengths = self.rng.integers(0, most, self._batch((b,)), endpoint=True)
    return lengths.astype(np.int32)

  def _layer(self, layers):
    layer = self.rng.integers(-1, layers + 1, self._batch(()))
    return np.asarray(layer, np.int32)

  def _cached(self, layer, sizes, order, codes, types):
    """(key or value, its scales or None)."""
    shape = _sizes(sizes, order)
    if not codes:
      return self._normal(*layer, *shape).astype(types[0]), None
    rows = [1 if axis == 'd' else n for axis, n in zip(order, shape)]
    scale = self.rng.uniform(
      0.5, 1.5, self._batch((*layer, *self._some(*rows)))
    )
    numbers = self.rng.integers(-128, 128, self._batch((*layer, *shape)))
    return numbers.astype(np.int8), np.float32(scale / 128)

  def own(self) -> dict[str, int]:
    """How many axes each operand has without that of the lead."""
    cached = 4 + (self.operands.layer is not None)
    own = dict.fromkeys(
      ('key', 'value', 'key_scale', 'value_scale'), cached
    ) | dict.fromkeys(('query', 'bias', 'mask'), 4)
    return own | dict(query_lengths=1, key_lengths=1, layer=0)

  def axes(self) -> attention.Operands:
    """For vmap: 0 where an operand has the axis of the lead."""
    own = self.own()
    axes = {
      f.name: 0 if np.ndim(a) > own[f.name] else None
      for f in dataclasses.fields(self.operands)
      if (a := getattr(self.operands, f.name)) is not None
    }
    return dataclasses.replace(self.operands, **axes)

  def on_paths(self, out_dtype) -> dict[str, np.ndarray]:
    """Results on each instruction path."""
    axes = self.axes()

    def run(p):
      def call(path):
        def one(p):
          return attention.attention(
            p, self.form, out_dtype=out_dtype, path=path
          )

        mapped = self.lead and any(a == 0 for a in jax.tree.leaves(axes))
        return jax.vmap(one, (axes,))(p) if mapped else one(p)

      return [call(path) for path in native.paths()]

    results = jax.jit(run)(jax.tree.map(jnp.asarray, self.operands))
    return dict(zip(native.paths(), map(np.asarray, results)))

  def expected(self) -> np.ndarray:
    own = self.own()
    found = []
    for i in range(self.lead or 1):
      parts = {
        f.name: a[i] if np.ndim(a) > own[f.name] else a
        for f in dataclasses.fields(self.operands)
        if (a := getattr(self.operands, f.name)) is not None
      }
      found.append(
        expected(dataclasses.replace(self.operands, **parts), self.form)
      )
    mapped = any(a == 0 for a in jax.tree.leaves(self.axes()))
    return np.stack(found) if mapped else found[0]


def _sizes(sizes, order):
  return tuple(sizes[axis] for axis in order)
