"""What a function of the library is given, and how XLA calls it.

A call is of a stack: operands and results are [*stack, *own], and each operand says how
many axes it has of its own. Axes of the stack broadcast.
"""

import jax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs


class Operands:
  """What a call is given: arrays, and how many axes of each are not the stack's."""

  def __init__(self, operands):
    self._all = list(operands)

  def add(self, operands) -> int:
    """Adds those that are there; bit i of the result says whether the i-th is.

    Missing operands are not passed: XLA takes time for each.
    """
    there = [a is not None for a, _ in operands]
    self._all += [o for o, is_there in zip(operands, there) if is_there]
    return sum(1 << i for i, is_there in enumerate(there) if is_there)

  def call(self, name, results, **attributes) -> tuple[jax.Array, ...]:
    """Calls a function of the library on a stack.

    Args:
      name: of the function.
      results: (shape of a result of the stack, dtype) of each.
      **attributes: what is static.

    Returns:
      [*stack, *shape] for each result.
    """
    lead = max(a.ndim - own for a, own in self._all)
    arrays = _alike([_filled_up(a, lead + own) for a, own in self._all])
    stack = jnp.broadcast_shapes(*(a.shape[:lead] for a in arrays))
    function = jax.ffi.ffi_call(
      f'jaxopt_compress_{name}',
      [_result((*stack, *shape), dtype, arrays[0]) for shape, dtype in results],
      vmap_method='expand_dims',
    )
    return tuple(function(*arrays, **attributes))


def _filled_up(a, ndim):
  """An array with axes of size one before its own."""
  return a.reshape((1,) * (ndim - a.ndim) + a.shape)


def _alike(operands):
  """Operands that all vary over the same mesh axes inside a `shard_map`."""
  axes = frozenset().union(*(jaxprs.varying(jax.typeof(a)) for a in operands))
  return [jaxprs.vary(a, axes) for a in operands]


def _result(shape, dtype, like):
  """Shape and dtype of a result, which varies over the mesh axes that `like` does."""
  of = jax.typeof(like)
  if not jaxprs.varying(of):
    return jax.ShapeDtypeStruct(shape, dtype)
  # JAX wants to know over which mesh a value varies.
  whole = jax.sharding.PartitionSpec(*(None for _ in shape))
  return jax.ShapeDtypeStruct(
    shape,
    dtype,
    sharding=jax.sharding.NamedSharding(of.sharding.mesh, whole),
    manual_axis_type=of.manual_axis_type,
  )
