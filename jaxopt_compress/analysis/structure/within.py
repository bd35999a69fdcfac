"""Which channels lie inside others, so that each of these may keep its own.

    q [t, kv, rep, k]      k [t, kv, k]      `rep` never comes without `kv`

Query heads lie inside their key head, channels of an expert inside the expert, and
those of a scanned layer inside the layer. One key head may then keep other query heads
than the next. What stays has to meet its own kind everywhere: so this holds only if
every value of the program that has the inner channels has the outer ones besides. (A
rule that moves entries along an axis gives its result another axis.)
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import functools

from jaxopt_compress.analysis.structure import channels as channels_lib

Axis = channels_lib.Axis


def within(
  channels: channels_lib.Channels, values: Iterable[Sequence[Axis]]
) -> dict[int, tuple[int, ...]]:
  """{leaf: the leaves that it lies inside of, outermost first}.

  Args:
    channels: what has been found.
    values: the axes of each value of the program; those of a loop over layers count
      for the values inside.

  >>> c = channels_lib.Channels()
  >>> kv, rep = c.axis(2), c.axis(3)
  >>> within(c, [(kv, rep), (kv,)]) == {rep[0]: kv}
  True
  """
  beside: dict[int, set[int]] = {}
  # In a product of two that are never apart, the one that is met first is outside.
  met: dict[int, int] = {}
  for axes in dict.fromkeys(tuple(axes) for axes in values):
    for leaf, others in _together(channels, axes, ()):
      met.setdefault(leaf, len(met))
      beside.setdefault(leaf, set(others)).intersection_update(others)

  def outside(leaf):
    for other in beside[leaf]:
      mutual = leaf in beside.get(other, ())
      if not (mutual and met[leaf] < met[other]):
        yield other

  free = [leaf for leaf in beside if not channels.locks(leaf)]
  found = {leaf: set(outside(leaf)) for leaf in free}
  return {
    leaf: tuple(sorted(others, key=lambda o: (len(found.get(o, ())), met[o])))
    for leaf, others in found.items()
    if others
  }


def _together(
  channels, axes: Sequence[Axis], around: tuple[int, ...]
) -> Iterator[tuple[int, set[int]]]:
  """(leaf, the leaves that each of its entries is of besides) of a value."""
  factors = [c for axis in axes for c in channels.factors(axis)]
  plain = [c for c in factors if channels.terms(c) is None]
  here = (*around, *plain)
  # A channel that comes twice says of no entry which one it is of.
  once = functools.partial(_once, here)
  for leaf in plain:
    yield leaf, once(leaf)
  for c in factors:
    for term in channels.terms(c) or ():
      yield from _together(channels, [term], here)


def _once(leaves: Sequence[int], but: int) -> set[int]:
  return {c for c in leaves if c != but and leaves.count(c) == 1}
