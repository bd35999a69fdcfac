"""Keys and values that are one layer of a cache of all layers.

    k = cache[layer],   cache [layers, ...]

as a slice, or as a dynamic slice by an index that may count from the end. A kernel
that is given the whole cache and the number of the layer reads it where it lies: what
a program cuts out is copied.
"""

import dataclasses
from typing import Any

from jaxopt_compress.core import jaxprs
from jaxopt_compress.kernels.attends import traced


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of a cache.

  Attributes:
    whole: the cache; its layout is that of a layer.
    index: which layer: a number, or an integer variable.
    meant: what the index is: (number or variable, whether negative ones count from
      the end, what is added to those).
  """

  whole: traced.Seen
  index: Any
  meant: tuple[Any, bool, int]


def find(trace: traced.Trace, seen: traced.Seen) -> Layer | None:
  """The layer that a value is, if it is one."""
  eqn = trace.maker(seen.v)
  name = eqn.primitive.name if eqn is not None else ''
  if name not in ('slice', 'dynamic_slice'):
    return None
  cache, *starts = eqn.invars
  shape = cache.aval.shape
  if eqn.outvars[0].aval.shape != (1, *shape[1:]):
    return None
  # The first axis, of size one, is the layer's.
  whole = traced.Seen(cache, seen.layout[1:])
  if name == 'slice':
    index = int(eqn.params['start_indices'][0])
    return Layer(whole, index, (index, False, 0))
  if (number := trace.constant(starts[0])) is not None:
    # A dynamic slice cuts off an index that is outside.
    index = min(max(int(number), 0), shape[0] - 1)
    return Layer(whole, index, (index, False, 0))
  return Layer(whole, starts[0], _meant(trace, starts[0], shape[0]))


def _meant(trace, v, count) -> tuple[Any, bool, int]:
  """(i, True, n) of where(i < 0, i + n, i), which each indexing computes anew.

  Args:
    trace: of the body.
    v: the index.
    count: n, the number of layers.
  """
  v = trace.back(traced.Seen(v, ())).v
  eqn = trace.maker(v)
  if eqn is None or eqn.primitive.name != 'select_n' or len(eqn.invars) != 3:
    return v, False, 0
  negative, i, later = eqn.invars
  test, more = trace.maker(negative), trace.maker(later)
  is_that = (
    jaxprs.is_var(i)
    and test is not None
    and test.primitive.name == 'lt'
    and test.invars[0] is i
    and trace.constant(test.invars[1]) == 0
    and more is not None
    and more.primitive.name == 'add'
    and more.invars[0] is i
    and trace.constant(more.invars[1]) == count
  )
  # An index that counts from the end is another layer than its number is, cut off.
  return (i, True, count) if is_that else (v, False, 0)
