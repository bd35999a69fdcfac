"""What is static of a weight laid out for kernels, and what follows from it.

    a leaf = arrays [stack..., axes of the part]  +  one Plan

Each leaf type of this folder is one layout. It says in `axes` how many axes each of
its arrays has after those of the stack, the payload first; everything here follows
from that table and the plan, for all of them. The static part is one record because
JAX compares every static field of every leaf in every call of a jitted function.
"""

from collections.abc import Iterable
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxopt_compress.analysis import storage
from jaxopt_compress.kernels import matrix as matrix_lib
from jaxopt_compress.kernels import sparse_layout
from jaxopt_compress.kernels.leaves import layers
from jaxopt_compress.quantization import formats
from jaxopt_compress.quantization import spec as spec_lib

# Types of scales that the kernels read.
_SCALES = (jnp.float32, jnp.bfloat16, jnp.float8_e8m0fnu, jnp.float8_e4m3fn)


class Plan(NamedTuple):
  """How an array is laid out.

  Attributes:
    format: name of the number format, in `quantization.formats`; '' for floats.
    dtype: of the array.
    matrix: how its axes are those of matrices.
    group: rows that share scales; `matrix.k` where all do.
    act: how the other operand becomes codes; None for not at all.
    feature_groups: of the convolution that it is the kernel of.
    sparse: how zeros are left out, see `sparse_layout`; None where they are not.
    paths: ((rows, instruction path), ...) as `tune` measured them; empty for the
      library's own choice.
    target: the kind of machine that it was laid out for: 'cpu', 'gpu' or 'tpu'.
  """

  format: str
  dtype: jnp.dtype
  matrix: matrix_lib.Matrix
  group: int
  act: spec_lib.Spec | None = None
  feature_groups: int = 1
  sparse: sparse_layout.Sparse | None = None
  paths: tuple[tuple[int, str], ...] = ()
  target: str = 'cpu'

  @property
  def grouped(self) -> bool:
    """Whether scales change along the rows."""
    return self.group < self.matrix.k

  @property
  def depthwise(self) -> bool:
    """Whether it is the kernel of a convolution that keeps channels apart."""
    return self.feature_groups > 1 and self.matrix.rows[-1] == 1

  def path_for(self, rows: int) -> str:
    """The instruction path for that many rows; '' for the library's choice."""
    if not self.paths:
      return ''
    # Times grow with the rows: the nearest measurement is that of the least ratio.
    return min(
      self.paths, key=lambda measured: abs(math.log(measured[0] / max(rows, 1)))
    )[1]


def dtype(leaf) -> jnp.dtype:
  return leaf.plan.dtype


def stack(leaf) -> tuple[int, ...]:
  """Sizes of the axes before those of the matrices."""
  name, own = next(iter(leaf.axes(leaf.plan).items()))
  payload = getattr(leaf, name)
  inner = max(len(leaf.plan.matrix.order), own)
  return payload.shape[: payload.ndim - inner]


def shape(leaf) -> tuple[int, ...]:
  """Of the array that a leaf stands for."""
  return stack(leaf) + leaf.plan.matrix.shape


def part(leaf, name: str) -> jax.Array | None:
  """A part without the axes of size one: [stack..., axes of the part]."""
  return layers.cut(lying(leaf, name))


def lying(leaf, name: str) -> jax.Array | layers.Layer | None:
  """The same, but one layer of a stack stays inside the stack."""
  x, own = getattr(leaf, name), leaf.axes(leaf.plan)[name]
  if x is None:
    return None
  return x.reshape(*stack(leaf), *x.shape[x.ndim - own :])


def full(
  x: jax.Array | layers.Layer | None,
  stack: tuple[int, ...],
  matrix: matrix_lib.Matrix,
) -> jax.Array | layers.Layer | None:
  """A part as leaves hold it: no part has fewer axes than the array.

  Transformations that slice the stack count axes of the array; axes of size one
  after the stack let them do so in every part.

  Args:
    x: [stack..., axes of the part], or None.
    stack: sizes of its axes.
    matrix: of the array.
  """
  if x is None:
    return None
  own = x.shape[len(stack) :]
  ones = (1,) * max(len(matrix.order) - len(own), 0)
  return x.reshape(*stack, *ones, *own)


def seen_as(leaf, matrix: matrix_lib.Matrix, dtype: Any = None):
  """The same matrices, seen with other axes, or in another dtype."""
  parts = {
    name: full(lying(leaf, name), stack(leaf), matrix)
    for name in leaf.axes(leaf.plan)
  }
  plan = leaf.plan._replace(matrix=matrix, dtype=dtype or leaf.plan.dtype)
  return dataclasses.replace(leaf, plan=plan, **parts)


def as_matrices(leaf):
  """The leaf that stands for [stack..., k, n]."""
  m = leaf.plan.matrix
  return seen_as(leaf, matrix_lib.Matrix((m.k,), (m.n,), (0, 1)))


def indexed(leaf) -> bool:
  """Whether loops leave it whole: the CPU's kernels read a layer where it lies."""
  return leaf.plan.target == 'cpu' and len(stack(leaf)) == 1 and leaf.size > 0


def entry(leaf, index: jax.Array):
  """The leaf of one layer; its payload stays where it lies, the rest is cut."""
  first, *others = leaf.axes(leaf.plan)
  cut = {
    name: layers.cut(layers.Layer(x, index))
    for name in others
    if (x := getattr(leaf, name)) is not None
  }
  cut[first] = layers.Layer(getattr(leaf, first), index)
  return dataclasses.replace(leaf, **cut)


def apart(leaf):
  """The leaf of one layer with a payload of its own."""
  first = next(iter(leaf.axes(leaf.plan)))
  return dataclasses.replace(leaf, **{first: layers.cut(getattr(leaf, first))})


def with_paths(leaf, paths: Iterable[tuple[int, str]]):
  """The leaf told which instruction path to take for how many rows."""
  plan = leaf.plan._replace(paths=tuple(paths))
  return dataclasses.replace(leaf, plan=plan)


def can_cut(leaf, axis: int, size: int) -> bool:
  """Whether pieces along an axis are leaves: stacks come apart, matrices do not."""
  del size
  return leaf.ndim + axis < len(stack(leaf))


def dtypes(leaf) -> dict[str, jnp.dtype]:
  """The types of the payload and of scales, which kernels read in several."""
  name = next(iter(leaf.axes(leaf.plan)))
  scale = getattr(leaf.scale, 'dtype', None)
  wanted = scale if scale in _SCALES else jnp.dtype(jnp.float32)
  return {name: jnp.dtype(leaf.stored), 'scale': wanted}


def _bits_taken(leaf) -> float:
  """Bits of the payload for each entry of the array."""
  whole, index = layers.parts(leaf.payload)
  entries = leaf.size * (1 if index is None else len(whole))
  return 8 * storage.nbytes(whole) / max(entries, 1)


def describe(leaf, laid_out: str, bits: int = 0) -> str:
  """The format in a few words, and how it is laid out: if wider, in how many bits."""
  plan = leaf.plan
  # Kernels fill columns up to 32, and groups up to whole units of rows.
  taken = _bits_taken(leaf) if bits else 0
  bits = round(taken) if taken >= 2 * bits else bits
  if bits and bits > formats.FORMATS[plan.format].bits:
    laid_out += f' in {bits} bits'
  words = [plan.format or plan.sparse.type]
  if leaf.scale is not None:
    words += [f'g{plan.group}' if plan.grouped else 'channel']
    words += ['mx'] * (leaf.scale.dtype == jnp.float8_e8m0fnu)
    words += ['nv'] * (getattr(leaf, 'global_scale', None) is not None)
  words += ['asym'] * (getattr(leaf, 'zero', None) is not None)
  said = ' '.join(words)
  if plan.act is not None:
    said += f', {spec_lib.act_words(plan.act)}'
  return f'{said}, {laid_out}'
