"""What keeps several QArrays one QArray: concatenate, stack, select, pad, tile.

    [ (q1 - z1) s1 | (q2 - z2) s2 ]  =  ([ q1 | q2 ] - [ z1 | z2 ]) [ s1 | s2 ]

Recurrent cells join the weights of their gates so, and experts are stacked. Leaves of
one format join; along the axis on which they meet each keeps its scales. One scale
for all of a leaf along that axis becomes one for each block of it.
"""

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import packing
from jaxopt_compress.quantization import qarray


def concatenate(*operands, dimension):
  """Joins leaves of one format and granularity along an axis."""
  axis = dimension - operands[0].ndim
  declined = _apart(operands, axis)
  if declined:
    return declined
  leaves = _packed_alike(_of_one_level(operands), axis)
  first, sizes = leaves[0], [q.shape[axis] for q in leaves]
  blocks, each = dict(first.blocks), [_block(q, axis) for q in leaves]
  # Blocks of the whole begin where a leaf begins, and inside of a leaf's own.
  size = math.gcd(*each, *sizes[:-1])
  # Pieces of one leaf, as `roll` joins them, go on sharing what all of it shared.
  same = first.scale.shape[axis] == 1 and all(
    q.scale is first.scale and q.zero is first.zero for q in leaves
  )
  blocks[axis] = sum(sizes) if same else size

  def joined(parts):
    if same:
      return parts[0]
    finer = [jnp.repeat(p, n // size, axis) for p, n in zip(parts, each)]
    return lax.concatenate(
      [
        lax.slice_in_dim(p, 0, -(-n // size), axis=axis)
        for p, n in zip(finer, sizes)
      ],
      dimension,
    )

  zeros = [q.zero for q in leaves]
  return dataclasses.replace(
    first,
    qvalue=lax.concatenate([q.qvalue for q in leaves], dimension),
    scale=joined([q.scale for q in leaves]),
    zero=None if first.zero is None else joined(zeros),
    tail=leaves[-1].tail,
    blocks=tuple(
      sorted(
        (a, n) for a, n in blocks.items() if a != axis or 1 < n < sum(sizes)
      )
    ),
  )


def _apart(operands, axis) -> lift.Dense | None:
  """Why leaves cannot be one, if they cannot."""
  if not all(isinstance(q, qarray.QArray) for q in operands):
    return lift.Dense('it is joined with an array that is not in codes')
  if not all(q.size for q in operands):
    return lift.Dense('an empty array')

  def kind(q):
    return q.format, None if q.zero is None else q.zero.dtype

  def beside(q):
    scales = list(q.scale.shape)
    scales[axis] = 0
    return scales, [b for b in q.blocks if b[0] != axis]

  for same, what in (
    (kind, 'formats'),
    (beside, 'scales of other granularity'),
  ):
    if any(same(q) != same(operands[0]) for q in operands):
      return lift.Dense(f'it is joined with {what}')
  return None


def _of_one_level(leaves):
  """Leaves whose scales are of one type and have none above them."""
  alike = len({q.scale.dtype for q in leaves}) == 1
  if alike and all(q.global_scale is None for q in leaves):
    return leaves
  return [q.of_one_level() for q in leaves]


def _packed_alike(leaves, axis):
  """Leaves whose bytes can be joined: packed along one axis, without filling in it."""
  filled = any(q.tail for q in leaves[:-1] if q.packed == axis)
  if filled or len({q.packed for q in leaves}) > 1:
    return [q.unpacked() for q in leaves]
  return leaves


def _block(q, axis) -> int:
  """How many entries along an axis share a scale."""
  whole = q.shape[axis] if q.scale.shape[axis] == 1 else 1
  return dict(q.blocks).get(axis, whole)


# --------------------------------------------------------- what is a concatenation


def stack(*operands, axis):
  """Leaves side by side along a new axis."""
  shape = list(operands[0].shape)
  shape.insert(axis, 1)
  expanded = [
    moves.reshape(q, shape) if isinstance(q, qarray.QArray) else q
    for q in operands
  ]
  declined = [q for q in expanded if isinstance(q, lift.Dense)]
  return declined[0] if declined else concatenate(*expanded, dimension=axis)


def tile(q, *, reps):
  """A leaf several times along its axes."""
  for i, n in enumerate(reps):
    q = concatenate(*[q] * n, dimension=i) if n != 1 else q
    if isinstance(q, lift.Dense):
      return q
  return q


def pad(q, value, *, padding_config):
  """A leaf and what is around it: the number one, with the value as its scale."""
  if not isinstance(q, qarray.QArray):
    return lift.Dense('it is the filling')
  for i, (low, high, inside) in enumerate(padding_config):
    if inside or low < 0 or high < 0:
      return lift.Dense('a padding between entries, or that cuts')
    around = [_filled(q, value, i, n) if n else None for n in (low, high)]
    pieces = [p for p in (around[0], q, around[1]) if p is not None]
    q = concatenate(*pieces, dimension=i) if len(pieces) > 1 else q
    if isinstance(q, lift.Dense):
      return q
  return q


def _filled(q, value, i, n):
  """A leaf like `q`, of `n` entries along axis `i`, all of which are `value`."""
  shape, scale = list(q.shape), list(q.scale.shape)
  shape[i], scale[i] = n, 1
  fmt, tail = q.numbers_format, 0
  codes = fmt.round(jnp.ones(shape, jnp.float32))
  if q.packed:
    tail = -shape[q.packed] % packing.unit(fmt.bits)[0]
    codes = packing.pack(codes, fmt.bits, q.packed)
  return dataclasses.replace(
    q,
    qvalue=codes,
    scale=jnp.full(scale, value.astype(jnp.float32)),
    zero=None if q.zero is None else jnp.zeros(scale, q.zero.dtype),
    global_scale=None,
    global_offset=None,
    tail=tail,
    blocks=tuple(b for b in q.blocks if b[0] != i - q.ndim),
    global_blocks=(),
  )


def select(which, *cases):
  """One of several leaves that differ in their numbers alone."""
  if not all(isinstance(q, qarray.QArray) for q in cases):
    return lift.Dense('it is chosen beside an array that is not in codes')
  if which.ndim:
    return lift.Dense('each entry is chosen by itself')
  if len({_form(q) for q in cases}) > 1:
    return lift.Dense('it is chosen beside another format')
  return jax.tree.map(lambda *parts: lax.select_n(which, *parts), *cases)


def _form(leaf):
  """All of a leaf but its numbers."""
  parts, treedef = jax.tree.flatten(leaf)
  return treedef, tuple((p.shape, p.dtype) for p in parts)


def of_weights(join):
  """The join of QDotArrays: that of the weights in them."""

  def join_weights(*operands, **params):
    leaves = [x for x in operands if isinstance(x, qarray.QDotArray)]
    first = leaves[0]
    for x in leaves:
      if x.act != first.act or not same_range(x, first):
        return lift.Dense('each rounds what it meets in its own way')
    # An array, or a leaf that rounds nothing, beside them is declined in there.
    weights = [
      x.weight if isinstance(x, qarray.QDotArray) else array.materialize(x)
      for x in operands
    ]
    out = join(*weights, **params)
    if isinstance(out, lift.Dense):
      return out
    return dataclasses.replace(first, weight=out)

  return join_weights


def same_range(x, y) -> bool:
  """Whether two leaves have one given range, or none."""
  return x.act_scale is y.act_scale and x.act_zero is y.act_zero


# How several QArrays are one under each primitive; beside these moves.
JOINS = {
  lax.concatenate_p: concatenate,
  lax.select_n_p: select,
  lax.stack_p: stack,
}
MOVES = {lax.pad_p: pad, lax.tile_p: tile}
