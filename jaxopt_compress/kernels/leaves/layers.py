"""One layer of a stack of payloads, which stays where it lies.

    Layer(whole, index)   stands for   whole[index]

A loop over layers cuts what it loops over, and what it cuts is copied: of a decoder
that reads each weight once, that doubles the time. A kernel that is given all layers
and the number of one reads it where it lies. Everything else asks for `cut`.
"""

import dataclasses
from typing import Any

import jax
from jax import lax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
  """Stands for `whole[index]`.

  Attributes:
    whole: [layers, ...].
    index: int32 scalar; negative ones count from the end.
  """

  whole: jax.Array
  index: jax.Array

  shape = property(lambda self: self.whole.shape[1:])
  ndim = property(lambda self: self.whole.ndim - 1)
  dtype = property(lambda self: self.whole.dtype)

  def reshape(self, *shape: int) -> 'Layer':
    whole = self.whole.reshape(self.whole.shape[0], *shape)
    return dataclasses.replace(self, whole=whole)


def cut(x: Any) -> Any:
  """An array; of a `Layer` the one that it stands for."""
  if not isinstance(x, Layer):
    return x
  return lax.dynamic_index_in_dim(x.whole, x.index, keepdims=False)


def parts(x: Any) -> tuple[jax.Array, jax.Array | None]:
  """(an array, None), or (all layers, which of them)."""
  return (x.whole, x.index) if isinstance(x, Layer) else (x, None)
