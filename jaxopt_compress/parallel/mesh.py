"""One axis of devices, called 'data', and how trees are placed on it."""

from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib

AXIS = 'data'


def data_mesh(n: int | None = None) -> Mesh:
  """A mesh of the first `n` devices along the axis 'data'; all by default.

  The axis type is Auto: `jax.make_mesh` alone gives Explicit axes, under which
  every array type carries its sharding and ordinary model code stops tracing.

  >>> dict(data_mesh(1).shape)
  {'data': 1}
  """
  devices = jax.devices()
  n = n or len(devices)
  if not 0 < n <= len(devices):
    raise ValueError(
      f'A mesh of {n} devices was asked for, and there are {len(devices)}'
      f' ({devices[0].platform}). Ask for at most {len(devices)}, or on CPU'
      f' set XLA_FLAGS=--xla_force_host_platform_device_count={n}.'
    )
  return jax.make_mesh(
    (n,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:n]
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of an array of which every device holds a whole copy."""
  return NamedSharding(mesh, PartitionSpec())


def sharded(mesh: Mesh) -> NamedSharding:
  """The sharding of an array that is split along its first axis."""
  return NamedSharding(mesh, PartitionSpec(AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts a whole copy of `tree` on every device of the mesh."""
  sharding = replicated(mesh)
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def put(x):
    # A PRNG key is no numpy array: its data travels, and is wrapped again.
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = put(jax.random.key_data(x))
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    # device_put reaches only the devices of this process; here each process fills
    # its own from the same host value.
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def shard(batch: Any, mesh: Mesh) -> Any:
  """Splits this process's part of a batch over the devices of the mesh.

  Args:
    batch: a tree of host arrays [b, ...], none of them compressed; b is this
      process's share of the global batch.
    mesh: from `data_mesh`.

  Returns:
    A tree of global arrays [b * processes, ...].

  Raises:
    ValueError: b is 0, differs between leaves or does not divide over the devices,
      or a leaf is compressed, a scalar or a PRNG key.
  """
  check_batch(batch, len(mesh.local_devices))
  sharding = sharded(mesh)

  def put(x):
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put, batch)


def share(batch: Any) -> Any:
  """The part of a global batch [b, ...] that this process gives to `shard`."""
  n, i = jax.process_count(), jax.process_index()
  check_batch(batch, n, 'processes')

  def part(x):
    # Contiguous parts in the order of the processes, as `shard` joins them again.
    size = x.shape[0] // n
    return x[i * size : (i + 1) * size]

  return jax.tree.map(part, batch)


def check_plain(tree: Any, role: str) -> None:
  """Raises ValueError if a leaf is compressed, whose parts are no such arrays.

  Args:
    tree: of arrays.
    role: what it is, such as 'a batch'.
  """
  for path, x in rules_lib.named_leaves(tree):
    if array.is_compressed(x):
      raise ValueError(
        f'{path or "A leaf"} of {role} is {x.describe()}, and plain arrays are'
        ' expected: its codes mean nothing without their scales. Leave it out, or'
        ' pass jc.materialize of it.'
      )


def check_batch(batch: Any, n: int, parts: str = 'devices') -> None:
  """Raises ValueError unless the arrays [b, ...] of a batch split into n parts."""
  check_plain(batch, 'a batch')
  lengths = {}
  for path, x in rules_lib.named_leaves(batch):
    shape, dtype = np.shape(x), getattr(x, 'dtype', np.generic)
    if not shape or jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
      kind = jax.typeof(x) if hasattr(x, 'dtype') else repr(x)
      raise ValueError(
        f'{path or "A leaf"} of a batch is {kind}, and an array [b, ...] is expected,'
        ' of which each device takes its part. What every device needs whole, as'
        ' PRNG keys and scalars, goes into the state or is closed over.'
      )
    lengths[path or 'x'] = shape[0]
    if len(set(lengths.values())) > 1:
      raise ValueError(
        f'Leaves of a batch have lengths {lengths}, and one length for all is'
        ' expected: each device takes the same rows of every leaf. What is no rows,'
        ' as the words of a PRNG key, goes into the state or is closed over.'
      )
    if not shape[0] or shape[0] % n:
      raise ValueError(
        f'A batch of {shape[0]} does not divide over {n} {parts}. Use {n} or'
        ' a multiple of it, or pad it and mask the padding.'
      )


def local(tree: Any) -> Any:
  """This process's own copy, on one device, of a replicated tree."""
  return jax.tree.map(lambda x: x.addressable_data(0), tree)
