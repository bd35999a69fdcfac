"""Which known values become leaves, and what they are called.

A value that data meet becomes a leaf, but for

  what only moves entries of one value (reshape, transpose, slice, a lookup, padding):
      a leaf goes through these as it is, so the value that is moved is asked;
  what takes more bytes than the parameters that it comes from, such as a table that is
      cast from bfloat16 to float32: it stays in the program, and its operands are
      asked.

What is moved as a whole, by reshapes and transposes on its only way to where it is read,
becomes a leaf behind these, unless it has the shape of its parameter before: a kernel
that is normalised as a matrix is a kernel again.

Bytes are spent once: leaves that come from one parameter take no more than it does, and
a sixteenth of that for small values beside it, a norm say. So `weights` takes hardly more
memory than `params`. A weight that is used both as it is and normalised therefore stays,
and is divided by its norm in the program.

A leaf has the path of the parameter that it comes from, of the largest where there are
several. Where these are equally large, what their paths differ in is joined by '&', as in
'cell/hf&hg&hi&ho/kernel' for four kernels in one. Of two leaves of one name the first in
the program has it, after a parameter that is a leaf itself; the other gets the primitive
that computes it, as in 'kernel_div'.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis.hoist import known
from jaxopt_compress.analysis.hoist import partial

_MOVES = moved.UNCHANGED | set(
  'broadcast_in_dim dynamic_slice expand_dims gather pad reshape rev slice split'
  ' squeeze tile transpose unstack'.split()
)
_MOST_NAMES = 4
# Of a parameter's bytes, one in so many is for values beside the parameter.
_BESIDE = 16
# What contracts a weight, or looks up its rows.
PRODUCTS = frozenset(
  'conv_general_dilated dot_general gather ragged_dot_general'.split()
)


def moves(x: known.Known) -> bool:
  """Whether a value holds entries of one other value, and nothing new."""
  if not isinstance(x, known.Result):
    return isinstance(x, known.Row)
  name, first = x.step.eqn.primitive.name, x.operands[:1]
  if name == 'convert_element_type':  # of a number to an array of its own type
    return first[0].aval.dtype == x.aval.dtype
  # What says where, or fills, is no entry.
  others = x.operands[1:]
  return name in _MOVES and not any(y.parents for y in others)


def chosen(reads: partial.Reads, sizes: Sequence[int]) -> list[known.Known]:
  """The leaves, in the order of the program.

  Args:
    reads: the values that meet data.
    sizes: bytes of each parameter.
  """
  stay = set()  # what stays in the program, as it takes too much
  while True:
    leaves, made = _ends(reads, sizes, stay)
    too_much = _beyond_budget(leaves, sizes)
    if not too_much:
      break
    stay |= too_much
  readers = {}
  for y in made:
    for x in y.operands:
      readers.setdefault(x, []).append(y)
  ways = [_to_product(x, readers, reads) for x in leaves]
  return [way[-1] for way in ways]


def in_products(reads: partial.Reads, sizes: Sequence[int]) -> set[int]:
  """The parameters of which products read what is computed, as a leaf.

  Args:
    reads, sizes: as for `chosen`.
  """
  leaves = set(chosen(reads, sizes))
  read = [x for x, by in reads.items() if PRODUCTS & set(by)]
  found = known.behind(read, leaves.__contains__)
  computed = [x for x in found if x in leaves and x.operands]
  return set().union(*(x.parents for x in computed))


def _ends(reads, sizes, stay):
  def is_leaf(x):
    if isinstance(x, known.Given):
      return True
    if moves(x) or x in stay or not x.parents:
      return False
    return nbytes(x) <= sum(sizes[i] for i in x.parents)

  # The order is that of the program, as values are numbered by it.
  found = known.behind((x for x in reads if x.parents), is_leaf)
  found = [x for x in found if x.parents]
  leaves = [x for x in found if is_leaf(x)]
  return leaves, set(found) - set(leaves)


def _to_product(leaf, readers, reads) -> list[known.Known]:
  """From a leaf to the same value as a product reads it, if nothing else does."""
  given = known.behind([leaf], lambda x: False)
  parent = max((x for x in given if isinstance(x, known.Given)), key=nbytes)
  way = [leaf]
  while way[-1].shape != parent.shape and way[-1] not in reads:
    following = readers.get(way[-1], [])
    if len(following) != 1 or not _turns(following[0]):
      return [leaf]
    way += following
  return way if PRODUCTS & set(reads.get(way[-1], ())) else [leaf]


def _turns(x: known.Known) -> bool:
  """Whether a value has all entries of one other, in another order or shape."""
  whole = 'expand_dims', 'reshape', 'squeeze', 'transpose'
  return isinstance(x, known.Result) and x.step.eqn.primitive.name in whole


def nbytes(x: known.Known) -> int:
  """Bytes of a value, of all turns of its loops."""
  turns = math.prod(loop.times for loop in x.loops)
  return turns * storage.nbytes(x.aval)


def _beyond_budget(leaves, sizes) -> set[known.Known]:
  """The leaves for which parameters have no bytes left."""
  left, shared = dict(enumerate(sizes)), dict.fromkeys(range(len(sizes)), 0)
  for x in leaves:
    for i in x.parents:
      shared[i] += 1
    if isinstance(x, known.Given):
      left.update(dict.fromkeys(x.parents, 0))
  for i, size in enumerate(sizes):
    left[i] += size // _BESIDE
  refused = set()
  for x in leaves:
    if isinstance(x, known.Given):
      continue
    need = nbytes(x)
    if need > sum(left[i] for i in x.parents):
      refused.add(x)
      continue
    # First from parameters that no other leaf comes from.
    for i in sorted(x.parents, key=lambda i: (shared[i], i)):
      spent = min(need, left[i])
      left[i], need = left[i] - spent, need - spent
  return refused


# ----------------------------------------------------------------------- names


def named(
  leaves: Sequence[known.Known], paths: Sequence[str], sizes: Sequence[int]
) -> dict[str, known.Known]:
  """{name: leaf}, those that are parameters first."""
  if len(set(paths)) < len(paths):
    twice = max(paths, key=paths.count)
    raise ValueError(
      f'Two parameters are named {twice!r}: keys that hold "/" meet nested ones.'
      ' Rename one of them.'
    )
  given = [x for x in leaves if isinstance(x, known.Given)]
  names = {paths[i]: x for x in given for i in x.parents}
  for x in leaves:
    if isinstance(x, known.Given):
      continue
    largest = max(sizes[i] for i in x.parents)
    main = [paths[i] for i in sorted(x.parents) if sizes[i] == largest]
    names[_free(joined(main), x, names)] = x
  return names


def joined(paths: Sequence[str]) -> str:
  """One path for what comes from several.

  >>> joined(['cell/hf/kernel', 'cell/hi/kernel'])
  'cell/hf&hi/kernel'
  >>> joined(['params/bn/scale', 'stats/bn/var'])
  'params.bn.scale&stats.bn.var'
  """
  if len(paths) == 1:
    return paths[0]
  words = [path.split('/') for path in paths]
  shortest = min(map(len, words)) - 1  # each keeps a word that is its own
  first = _common(words, shortest)
  last = _common([w[::-1] for w in words], shortest - first)
  middles = ['.'.join(w[first : len(w) - last]) for w in words]
  if len(middles) > _MOST_NAMES:
    more = len(middles) - _MOST_NAMES + 1
    middles = [*middles[: _MOST_NAMES - 1], f'{more}_more']
  ends = words[0][len(words[0]) - last :]
  return '/'.join([*words[0][:first], '&'.join(middles), *ends])


def nested(named: Mapping[str, Any]) -> dict:
  """Nested dicts, from names with '/'."""
  tree = {}
  for name, x in named.items():
    *modules, last = name.split('/')
    inner = tree
    for module in modules:
      inner = inner.setdefault(module, {})
      if not isinstance(inner, dict):
        break
    if not isinstance(inner, dict) or last in inner:
      raise ValueError(
        f'{name!r} cannot be a leaf beside another one of that name, or of the name'
        ' of its module. Rename the parameter.'
      )
    inner[last] = x
  return tree


def _common(words, most) -> int:
  """How many first words all have."""
  n = 0
  while n < most and len({w[n] for w in words}) == 1:
    n += 1
  return n


def _free(name: str, x: known.Known, taken: Mapping) -> str:
  """The name, or the next that is free."""
  if name not in taken:
    return name
  while moves(x):
    x = x.operands[0]
  name = f'{name}_{x.step.eqn.primitive.name}'
  numbered = (f'{name}_{i}' for i in range(2, len(taken) + 3))
  return next(n for n in (name, *numbered) if n not in taken)
