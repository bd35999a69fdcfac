"""Queries, keys and values as the kernel reads them.

Where they lie as the kernel can read them nothing is moved: they are seen in another
shape. A cache in codes is read as codes with a scale for each row, a layer of a cache
of all layers where it lies.
"""

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels.attends import match
from jaxopt_compress.kernels.attends import roles as roles_lib
from jaxopt_compress.quantization import cache as cache_lib

_NAMES = ('query', 'key', 'value')


def readable(found: match.Attention, v, leaf) -> bool:
  """Whether the kernel reads a leaf in codes: a cache in int8, a scale for each row.

  Args:
    found: attention.
    v: a variable that it reads.
    leaf: its value.
  """
  if not isinstance(leaf, cache_lib.QCache):
    return False
  names = [n for n in _NAMES if getattr(found, n).seen.v is v]
  if set(names) - {'key', 'value'} or not names:
    return False
  q = leaf.codes
  plain = q.qvalue.dtype == jnp.int8 and q.qvalue.shape == q.shape
  if not plain or q.zero is not None or q.blocks:
    return False
  if q.scale.dtype not in (jnp.float32, jnp.bfloat16):
    return False
  return all(_rows(found, name, q.scale.shape) for name in names)


def _rows(found, name, shape) -> bool:
  """Whether a scale has one entry along the features, and the operand lies well."""
  layout = getattr(found, name).seen.layout
  flat = found.parts.flat(layout)
  # One scale for a row is one that is the same along the features, and only there.
  features = {*found.roles.axes_of(name)['d']}
  own = shape[-len(layout) :]
  alone = all(
    (n == 1) == bool({*found.parts.known(axis)} & features) or not axis
    for n, axis in zip(own, layout, strict=True)
  )
  return alone and found.roles.order(name, flat) is not None


def of(found: match.Attention, values) -> tuple[dict, dict[str, str]]:
  """(query, key, value and what belongs to them, the order of axes of each).

  Args:
    found: attention.
    values: of its sources.
  """
  arrays = {name: read(values, getattr(found, name).seen) for name in _NAMES}
  for factor in found.scores.factors:
    q = arrays['query']
    # A factor of one entry is the same for all scores, so queries may have it.
    arrays['query'] = q * read(values, factor).reshape((1,) * q.ndim)
  kind = dtype(x for x in arrays.values() if not array.is_compressed(x))
  layer, placed, orders = found.layer, {}, {}
  # What has to be cast would be cast for all layers: then the one is cut out.
  stays = layer is not None and all(
    array.is_compressed(arrays[n]) or arrays[n].dtype == kind
    for n in ('key', 'value')
  )
  if hasattr(layer, 'aval'):
    layer = values[layer]
  for name, x in arrays.items():
    cut = layer is not None and name != 'query'
    if cut and not stays:
      x = jax.tree.map(
        lambda a: lax.dynamic_index_in_dim(a, layer, 0, False), x
      )
    whole = cut and stays
    if array.is_compressed(x):
      q = x.codes
      placed[f'{name}_scale'] = _whole(
        found, name, q.scale.astype(jnp.float32), whole, rows=True
      )
      placed[name] = _whole(found, name, q.qvalue, whole)
    elif whole:
      placed[name] = _whole(found, name, x, whole)
    else:
      flat = found.parts.flat(getattr(found, name).seen.layout)
      placed[name], _ = roles_lib.as_operand(
        x.astype(kind), flat, found.roles, name, found.parts
      )
    flat = found.parts.flat(getattr(found, name).seen.layout)
    orders[name] = found.roles.order(name, flat) or roles_lib.ORDERS[name][0]
  if stays:
    # As a dynamic slice cuts off an index that is outside.
    count = placed['key'].shape[0] - 1
    placed['layer'] = jnp.clip(jnp.asarray(layer, jnp.int32), 0, count)
  return placed, orders


def _whole(found, name, x, layers, rows=False):
  """x in the four axes of an operand, behind one of layers if it has that."""
  letters = found.roles.axes_of(name)
  flat = found.parts.flat(getattr(found, name).seen.layout)
  word = found.roles.order(name, flat)
  shape = [
    1 if rows and c == 'd' else found.parts.size(letters[c]) for c in word
  ]
  return x.reshape((*x.shape[:1], *shape) if layers else shape)


def read(values, seen):
  """The value of a variable or literal."""
  return values[seen.v] if jaxprs.is_var(seen.v) else jnp.asarray(seen.v.val)


def dtype(values):
  """What the kernel computes in."""
  narrow = all(x.dtype == jnp.bfloat16 for x in values)
  return jnp.bfloat16 if narrow else jnp.float32
