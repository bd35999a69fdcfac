"""How the parts of a compressed leaf are cut when the array it stands for is.

A part of the same rank as the leaf follows the leaf's spec on every axis that it
really has, and is replicated on the axes where it has size 1 (a scale shared
along them). A part of higher rank does so with its first axes, and is whole on
those after them (the rank of an adapter). A part of lower rank is replicated.
"""

import itertools
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxopt_compress.core import array


def _cuts(entry, mesh) -> int:
  axes = entry if isinstance(entry, tuple) else (entry,) if entry else ()
  return math.prod(mesh.shape[a] for a in axes)


def local_shape(shape, spec, mesh) -> tuple[int, ...]:
  """The shape of what one device holds of an array."""
  pairs = itertools.zip_longest(shape, spec)
  return tuple(n // _cuts(entry, mesh) for n, entry in pairs)


def part_spec(shape, leaf_ndim: int, spec: PartitionSpec, mesh):
  """The spec of one part, or None where it cannot be cut evenly."""
  if len(shape) < leaf_ndim:
    return PartitionSpec()
  out = []
  for n, entry in itertools.zip_longest(shape, spec):
    cuts = _cuts(entry, mesh)
    # A part of size one is shared by all that the axis is cut into.
    if n == 1 and cuts > 1:
      entry = None
    elif n % cuts:
      return None
    out.append(entry)
  return PartitionSpec(*out)


def leaf_specs(
  leaf: array.CompressedArray, spec: PartitionSpec, mesh, shape
) -> Any:
  """A leaf of specs for the parts of `leaf`, or None where none fits.

  Args:
    leaf: the compressed leaf, whole.
    spec: how the array that it stands for is cut.
    mesh: a Mesh or AbstractMesh.
    shape: that the cut leaf must stand for.
  """
  parts, treedef = jax.tree.flatten(leaf)
  specs = [part_spec(p.shape, leaf.ndim, spec, mesh) for p in parts]
  if any(s is None for s in specs):
    return None
  local = [
    jax.ShapeDtypeStruct(local_shape(p.shape, s, mesh), p.dtype)
    for p, s in zip(parts, specs, strict=True)
  ]
  # Packing and groups may not survive the cut: ask the leaf itself.
  sizes = zip(leaf.shape, shape, strict=True)
  # Axes count from the end, as the leaf's own fields do.
  cut = [(i - leaf.ndim, n) for i, (m, n) in enumerate(sizes) if m != n]
  if not all(leaf.can_cut(axis, n) for axis, n in cut):
    return None
  if jax.tree.unflatten(treedef, local).shape != tuple(shape):
    return None
  return jax.tree.unflatten(treedef, specs)
