"""One train step for many devices, in three ways that give the same result.

    step = data_parallel(per_replica_step, 'shard_map', mesh)
    state, metrics = step(state, batch)

`per_replica_step(state, batch, replicas, *frozen)` is written for the part of the
batch that one replica sees. It keeps sums and counts, averages both over the
replicas, and divides at the end:

    loss = mean_r(sum_r) / mean_r(count_r) = sum over all / count over all

so it does not matter how padding is spread over the replicas.

Why `check_vma=False`. With the default `check_vma=True`, `jax.grad` with respect to
parameters that are the same on every device already sums over the devices (the
transpose of the implicit broadcast is a psum). The idiom of pmap,
`pmean(grad(loss)(params))`, then returns the *sum*: N times too large on N devices,
with no error, and hidden by Adam. With `check_vma=False` a gradient is the local
one, as in pmap, and the mean below is the only collective.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import PartitionSpec
import numpy as np

from jaxopt_compress.analysis import differ
from jaxopt_compress.core import choices
from jaxopt_compress.core import rules as rules_lib
from jaxopt_compress.parallel import mesh as mesh_lib

MODES = ('shard_map', 'pmap', 'jit')


@dataclasses.dataclass(frozen=True)
class Replicas:
  """What a per-replica step may know about the other replicas.

  `axis` is None where the program sees the whole batch (jit): then there is one
  replica, and the mean over replicas is the identity.
  """

  axis: str | None = None

  def __call__(self, tree: Any) -> Any:
    """The mean of `tree`, plain arrays, over the replicas."""
    mesh_lib.check_plain(tree, 'a mean over replicas')
    if self.axis is None:
      return tree
    return jax.tree.map(lambda x: jax.lax.pmean(x, self.axis), tree)

  def fold_in(self, key: jax.Array) -> jax.Array:
    """A key for this replica alone, so that no two drop the same units."""
    index = 0 if self.axis is None else jax.lax.axis_index(self.axis)
    return jax.random.fold_in(key, index)


def data_parallel(
  per_replica_step: Callable[..., tuple[Any, Any]],
  mode: str = 'shard_map',
  mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., tuple[Any, Any]]:
  """Runs a step written for one replica on all devices of a mesh.

  The three modes give the same parameters as one device does on the whole batch
  (tests/parallel/step_test.py). Two things differ by design: with 'jit' there is
  one replica, so there is one dropout key, and batch statistics are those of the
  global batch; the other modes have a key and statistics for each device.

  Args:
    per_replica_step: `(state, batch, replicas, *frozen) -> (state, metrics)`; both
      results must be equal on all replicas, so average with `replicas(tree)`. That is
      checked as the step is traced, except with 'jit'.
    mode: 'shard_map' (the step names its collectives), 'pmap' (the same through the
      older API), or 'jit' (arrays are sharded, the compiler inserts collectives).
    mesh: from `mesh.data_mesh`; all devices by default.

  Returns:
    `step(state, batch, *frozen)`, where `batch` comes from `mesh.shard` (or is a
    tree of host arrays if there is one process) and the rest is replicated.
    `step.jitted` is the compiled function, for its cache and its cost analysis.

  Raises:
    ValueError: (when called) a result depends on a replica's own part of the batch,
      or on its index, and would be another one on each.
  """
  mesh = mesh or mesh_lib.data_mesh()
  choices.one_of('mode', mode, MODES, '=')
  build = {'shard_map': _shard_map, 'pmap': _pmap, 'jit': _jit}[mode]
  jitted, place = build(per_replica_step, mesh)

  def step(state, batch, *frozen):
    return jitted(state, place(batch), frozen)

  step.jitted = jitted
  return step


def _shard_map(per_replica_step, mesh):
  everywhere, split = PartitionSpec(), PartitionSpec(mesh_lib.AXIS)

  mapped = jax.shard_map(
    _checked(per_replica_step),
    mesh=mesh,
    in_specs=(everywhere, split, everywhere),
    out_specs=everywhere,
    check_vma=False,
  )
  return _jit_on(mapped, mesh)


def _checked(per_replica_step):
  """The body of one replica, which raises where results would differ."""

  @jax.jit
  def one(state, batch, frozen):
    return per_replica_step(state, batch, Replicas(mesh_lib.AXIS), *frozen)

  def body(state, batch, frozen):
    # As `one` is jitted, it is traced once for both.
    program, out = jax.make_jaxpr(one, return_shape=True)(state, batch, frozen)
    own = [False] * len(jax.tree.leaves(state))
    own += [True] * len(jax.tree.leaves(batch))
    own += [False] * len(jax.tree.leaves(frozen))
    differs = differ.differ(program, mesh_lib.AXIS, own)
    named = rules_lib.named_leaves(out, is_leaf=None)
    bad = [p for (p, _), d in zip(named, differs, strict=True) if d]
    if bad:
      raise ValueError(
        f'{len(bad)} of the {len(differs)} results of this step are not the same on'
        f' all replicas: {bad[:8]}, where 0 is the state and 1 the metrics. They'
        ' would drift apart. Average what comes from the batch, gradients first, as'
        ' in replicas((total, count, grads)).'
      )
    return one(state, batch, frozen)

  return body


def _jit(per_replica_step, mesh):
  def body(state, batch, frozen):
    return per_replica_step(state, batch, Replicas(), *frozen)

  return _jit_on(body, mesh)


def _jit_on(body, mesh):
  everywhere = mesh_lib.replicated(mesh)
  jitted = jax.jit(
    body,
    in_shardings=(everywhere, mesh_lib.sharded(mesh), everywhere),
    out_shardings=everywhere,
    # Donating the state saves a copy of it, but a CPU array may share its memory
    # with a checkpoint that is still being written.
    donate_argnums=() if jax.default_backend() == 'cpu' else 0,
  )
  return jitted, functools.partial(mesh_lib.shard, mesh=mesh)


def _pmap(per_replica_step, mesh):
  checked = _checked(per_replica_step)

  def body(state, batch, frozen):
    return checked(state, *batch, frozen)

  mapped = jax.pmap(
    body,
    axis_name=mesh_lib.AXIS,
    # Nested, as jax takes a flat tuple for one axis a leaf if there are as many
    # leaves: a state of one and a batch of two would be cut in the wrong places.
    in_axes=(None, (0,), None),
    out_axes=None,
    # None means all devices of all processes.
    devices=None if jax.process_count() > 1 else list(mesh.devices.flat),
  )

  def place(batch):
    return (_stack(batch, len(mesh.local_devices)),)

  return mapped, place


def _stack(batch, n):
  """[b, ...] -> [n, b / n, ...] on the host, as pmap wants it."""

  def here(x):
    # Shards of this process lie in the order of the mesh, so joined they are its
    # part of the batch.
    if isinstance(x, jax.Array) and x.ndim:
      return np.concatenate([s.data for s in x.addressable_shards])
    return x

  def stack(x):
    x = np.asarray(x)
    return x.reshape((n, x.shape[0] // n) + x.shape[1:])

  # Before numpy meets a key. A global batch divides if its parts do.
  mesh_lib.check_batch(batch, n)
  return jax.tree.map(stack, jax.tree.map(here, batch))
