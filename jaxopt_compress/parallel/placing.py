"""Trees with compressed leaves on the devices of a mesh."""

from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxopt_compress.core import array
from jaxopt_compress.core import sharding


def device_put(tree: Any, mesh: Mesh, specs: Any) -> Any:
  """Places a tree with compressed leaves as its dense form would be placed.

  Args:
    tree: arrays and compressed leaves.
    mesh: the devices.
    specs: one PartitionSpec for each leaf (a compressed leaf counts as one), or
      a single one for all.

  Raises:
    ValueError: a compressed leaf whose parts cannot be cut that way.
  """

  def place(x, spec):
    return jax.tree.map(jax.device_put, x, shardings(x, mesh, spec))

  if isinstance(specs, PartitionSpec):
    of_all = specs
    specs = jax.tree.map(lambda x: of_all, tree, is_leaf=array.is_compressed)
  return jax.tree.map(place, tree, specs, is_leaf=array.is_compressed)


def shardings(x: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
  """Where the parts of a leaf go, whose dense form is cut as `spec` says.

  Args:
    x: an array or a compressed leaf, maybe abstract.
    mesh: the devices.
    spec: of what `x` stands for.

  Returns:
    A sharding, or a leaf of them.

  Raises:
    ValueError: a compressed leaf whose parts cannot be cut that way.
  """
  if not array.is_compressed(x):
    return NamedSharding(mesh, spec)
  parts = sharding.leaf_specs(
    x, spec, mesh, sharding.local_shape(x.shape, spec, mesh)
  )
  if parts is None:
    raise ValueError(
      f'{x.describe()} of shape {x.shape} cannot be cut as {spec} over'
      f' {dict(mesh.shape)}: its parts are'
      f' {[p.shape for p in jax.tree.leaves(x)]}. Cut an axis that all parts'
      ' share, or replicate the leaf.'
    )
  return jax.tree.map(
    lambda s: NamedSharding(mesh, s),
    parts,
    is_leaf=lambda s: isinstance(s, PartitionSpec),
  )
