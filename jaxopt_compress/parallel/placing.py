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
    if not array.is_compressed(x):
      return jax.device_put(x, NamedSharding(mesh, spec))
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
      lambda p, s: jax.device_put(p, NamedSharding(mesh, s)), x, parts
    )

  if isinstance(specs, PartitionSpec):
    of_all = specs
    specs = jax.tree.map(lambda x: of_all, tree, is_leaf=array.is_compressed)
  return jax.tree.map(place, tree, specs, is_leaf=array.is_compressed)
