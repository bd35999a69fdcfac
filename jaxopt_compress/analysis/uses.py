"""Every weight knows the operations it is used in.

`uses(apply)(params, x)` follows each leaf through the program, through reshape,
transpose, convert, slice, squeeze, jit, scan and remat, and tells which
primitives it reaches and which of its axes are contracted there. So a "channel"
is what is not contracted: for Dense, DenseGeneral, attention, convolutions,
embeddings and layers nobody has heard of, with no table of layer names.

The walk is that of `walk`. A value says which leaves it comes from by moving
entries alone, and what each of its axes was in the leaf (`moved`).
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from jaxopt_compress.analysis import algebra
from jaxopt_compress.analysis import ends
from jaxopt_compress.analysis import moved
from jaxopt_compress.analysis import storage
from jaxopt_compress.analysis import table_rows
from jaxopt_compress.analysis import walk
from jaxopt_compress.analysis.hoist import leaves
from jaxopt_compress.analysis.hoist import partial
from jaxopt_compress.core import rules as rules_lib


class Use(NamedTuple):
  """One operation that a leaf reaches.

  Attributes:
    primitive: name of the JAX primitive.
    contracted: axes of the leaf, counted from the end, that are summed over
      (dot, convolution: the window, then channels), or that make up one row
      (gather); () elsewhere.
    stacked: axes along which there is one weight after the other: sliced away
      before by a scan or by indexing, batch axes of a dot, groups (experts) of a
      ragged dot.
    source: file, line and function of the model.
    feature_groups: of a convolution.
    remade: primitives of the program that join, pad, turn or deal the leaf, which
      stays itself under reshape, transpose and slice.
    experts: those of `stacked` along which one product has a weight for each:
      batch axes of a dot, groups of a ragged dot.
    shape: of the leaf.
    first, last: whether a product with it reads what the program is given, and
      whether one writes what it returns (`ends`).
    in_product: whether products read what is computed from the leaf and other
      parameters, none the leaf itself: `jc.hoist` makes that a leaf.
  """

  primitive: str
  contracted: tuple[int, ...]
  stacked: tuple[int, ...]
  source: str
  feature_groups: int = 1
  remade: tuple[str, ...] = ()
  experts: tuple[int, ...] = ()
  shape: tuple[int, ...] = ()
  first: bool = False
  last: bool = False
  in_product: bool = False


class Axes(NamedTuple):
  """What the axes of a leaf are, each counted from the end."""

  contracted: tuple[int, ...]
  stacked: tuple[int, ...]
  free: tuple[int, ...]


def uses(fun: Callable) -> Callable[..., dict[str, tuple[Use, ...]]]:
  """For each leaf of the first argument, the operations it reaches.

  Args:
    fun: a function of parameters and further arguments.

  Returns:
    A function of the same arguments that returns `{path: (Use, ...)}`, in the
    order of the tree; a leaf that the program never reads has an empty tuple.
    Nothing is computed: arguments may be abstract.

  >>> import jax.numpy as jnp
  >>> f = lambda p, x: x @ p['w'] + p['b']
  >>> params = {'w': jnp.ones((3, 4)), 'b': jnp.ones((1, 4))}
  >>> [(u.primitive, u.contracted) for u in uses(f)(params, jnp.ones((2, 3)))['w']]
  [('dot_general', (-2,))]
  """

  def used(params, *args, **kwargs):
    closed, arrays = walk.trace(fun, params, args, kwargs)
    asked = _Uses({path: len(x.shape) for path, x in arrays})
    inputs = [{path: moved.whole(x.shape)} for path, x in arrays]
    others = closed.jaxpr.invars[len(inputs) :]
    algebra.evaluate(asked, closed, inputs + [{} for _ in others])
    shapes = {path: tuple(x.shape) for path, x in arrays}
    first, last = ends.ends(closed, list(shapes))
    computed = _in_products(closed, arrays, asked)

    def of_leaf(path):
      facts = dict(
        first=path in first,
        last=path in last,
        shape=shapes.get(path, ()),
        in_product=path in computed,
      )
      return tuple(use._replace(**facts) for use in asked.of(path))

    paths = [path for path, _ in rules_lib.named_leaves(params)]
    return {path: of_leaf(path) for path in paths}

  return used


def _in_products(closed, arrays, asked) -> set[str]:
  """The leaves in no product of which one reads what is computed from them."""
  others = [p for p, _ in arrays if not any(u.contracted for u in asked.of(p))]
  # What is only added to data, as a bias is, is in no value of that kind.
  if all(u.primitive == 'add' for p in others for u in asked.of(p)):
    return set()
  walked = partial.Partial()
  walked.run(closed, [x for _, x in arrays])
  sizes = [storage.nbytes(x) for _, x in arrays]
  found = {arrays[i][0] for i in leaves.in_products(walked.reads, sizes)}
  return found.intersection(others)


def checked(uses: Any) -> Mapping[str, tuple[Use, ...]]:
  """The same, or ValueError for `jc.uses(apply)` that was not called, or parameters."""
  known = next(iter(uses.values()), ()) if isinstance(uses, Mapping) else None
  if not (isinstance(known, tuple) and all(isinstance(u, Use) for u in known)):
    raise ValueError(
      f'uses is {uses!r:.60}, not what a program uses its leaves for. That is what'
      ' jc.uses(apply) returns, called on the parameters and an example:'
      ' jc.uses(apply)(params, x).'
    )
  return uses


def of(
  path: str, uses: dict[str, tuple[Use, ...]] | None
) -> tuple[Use, ...] | None:
  """What is known of a leaf; None where nothing is."""
  return None if uses is None else checked(uses).get(path)


def axes(path: str, leaf: Any, uses: dict[str, tuple[Use, ...]] | None) -> Axes:
  """The contracted, stacked and free axes of a leaf.

  With `uses`, from the program: an axis contracted anywhere counts as
  contracted. Without, only for leaves called `kernel`, by what Flax documents of
  that name: a matrix is [in, out], and [h, w, in, out] with a square odd window a
  convolution. No shape tells that a `weight` of Equinox is [out, in].

  Args:
    path: name of the leaf.
    leaf: anything with a shape.
    uses: what `uses(apply)(params, x)` returned, or None.

  Raises:
    ValueError: the axes cannot be told, or no operation contracts the leaf.
  """
  ndim = len(leaf.shape)
  if uses is None:
    return _by_convention(path, tuple(leaf.shape))
  all_of_leaf = of(path, uses)
  if all_of_leaf is None:
    raise ValueError(
      f'uses has no entry for {path}: it was made for another tree, with'
      f' leaves {list(uses)[:8]}. Call jc.uses(apply)(params, x) on this one.'
    )
  found = [u for u in all_of_leaf if u.contracted]
  if not found:
    met = sorted({f'{u.primitive} at {u.source}' for u in all_of_leaf})
    where = '; '.join(met) if met else 'no operation at all'
    hoist = ' Or jc.hoist(apply)(params, x) makes the value that the product reads a leaf.'
    raise ValueError(
      f'{path} reaches no dot, convolution or gather, only {where}. Leave it'
      f' as it is: put (r"{path}", None) before the rule that takes it.'
      f'{hoist if any(u.in_product for u in all_of_leaf) else ""}'
    )
  contracted = set().union(*(u.contracted for u in found))
  if min(contracted) < -ndim:
    raise ValueError(
      f'{path} has shape {tuple(leaf.shape)}, and its uses contract axes'
      f' {sorted(contracted)}: they are those of another tree. Call'
      ' jc.uses(apply)(params, x) on this one.'
    )
  stacked = set().union(*(u.stacked for u in found)) - contracted
  free = set(range(-ndim, 0)) - contracted - stacked
  return Axes(*(tuple(sorted(a)) for a in (contracted, stacked, free)))


def is_window(shape: tuple[int, ...]) -> bool:
  """Whether it looks like [h, w, in, out], by Flax's convention: square and odd."""
  return len(shape) == 4 and shape[0] == shape[1] <= 11 and shape[0] % 2 == 1


def _by_convention(path, shape) -> Axes:
  if path.split('/')[-1] == 'kernel':
    if len(shape) == 2:
      return Axes((-2,), (), (-1,))
    if is_window(shape):
      return Axes((-4, -3, -2), (), (-1,))
  raise ValueError(
    f'Which axes of {path or "this array"}, shape {shape}, are contracted? Pass'
    ' uses=jc.uses(apply)(params, x), which knows. Without it only leaves called'
    ' "kernel", as Flax calls them, are clear, and of those matrices [in, out] and'
    ' convolutions [h, w, in, out] with a square odd window.'
  )


# -------------------------------------------------------------------- the walk

# Moves that make another array: of more or fewer arrays, or in another order.
_REMAKE = frozenset(
  'all_gather concatenate pad rev select_n split stack tile unstack'.split()
)


class _Uses(algebra.Algebra):
  """A value is {path of a leaf: the pieces of each of its axes}.

  It has the leaves that it comes from by moving entries alone: a concatenation has
  several, a sum none.
  """

  def __init__(self, ranks: dict[str, int]):
    self.ranks = ranks
    self.found = {path: {} for path in ranks}  # dicts keep the order of uses
    self.remade = {path: set() for path in ranks}

  def of(self, path) -> tuple[Use, ...]:
    remade = tuple(sorted(self.remade.get(path, ())))
    return tuple(u._replace(remade=remade) for u in self.found.get(path, ()))

  def plain(self, aval):
    return {}

  def layer(self, x, turn, aval):
    return {path: pieces[1:] for path, pieces in x.items()}

  def cut(self, at, x, spec, aval):
    return {
      path: list(map(moved.fit, pieces, aval.shape))
      for path, pieces in x.items()
    }

  def apply(self, at, inputs):
    if at.eqn.primitive.name in self.rules:
      return super().apply(at, inputs)
    outs = [{} for _ in at.eqn.outvars]
    for path in dict.fromkeys(path for x in inputs for path in x):
      operands = {i: x[path] for i, x in enumerate(inputs) if path in x}
      if not self._moves(path, at, operands, outs):
        self._ends(path, at, operands)
    return outs

  def _moves(self, path, at, operands, outs) -> bool:
    """Takes a leaf along to the results, if its entries are only moved."""
    for i, pieces in operands.items():
      move = moved.of(at.eqn, i)
      results = None if move is None else move.axes(pieces)
      if results is not None:
        self.remade[path] |= {at.eqn.primitive.name} & _REMAKE
        for out, result in zip(outs, results, strict=True):
          out[path] = result
        # One operand is followed: a leaf joined with itself ends here as well.
        for _ in range(len(operands) - 1):
          self._note(path, at, (), ())
        return True
    return False

  def _ends(self, path, at, operands):
    """Notes what a leaf meets in an operation that computes."""
    meet = _MEETINGS.get(at.eqn.primitive.name)
    for i, pieces in operands.items():
      if meet is None:
        self._note(path, at, (), ())
        continue
      contracted, one_by_one, *groups = meet(at.eqn, i, pieces)
      # Axes of the leaf that are gone, or along which the product runs one by one.
      others = [j for j in range(len(pieces)) if j not in one_by_one]
      stacked = set(range(-self.ranks[path], 0)) - {*_axes_at(pieces, others)}
      experts = tuple(sorted(_axes_at(pieces, one_by_one)))
      stacked = tuple(sorted(stacked))
      self._note(path, at, contracted, stacked, *groups, experts=experts)

  def _note(self, path, at, contracted, stacked, *groups, experts=()):
    name = at.eqn.primitive.name
    use = Use(name, contracted, stacked, at.source, *groups, experts=experts)
    self.found[path][use] = True


def _enter_and_end(asked, at, inputs):
  """`lift` computes with a leaf in there, and gives dense results back."""
  algebra.evaluate(asked, walk.enter(at.eqn).body, inputs, at)
  return None


# What a leaf meets in an operation that computes:
# (equation, operand, pieces) -> (contracted axes of the leaf, axes of the operand
# along which there is one weight after the other[, groups of a convolution]).


def _axes_at(pieces, dims):
  """The axes of the leaf that axes of an operand are made of, in their order."""
  return tuple(dict.fromkeys(axis for i in dims for axis, _ in pieces[i]))


def _meet_dot(eqn, operand, pieces):
  contracting, batch = eqn.params['dimension_numbers']
  dims = contracting[operand]
  return tuple(sorted(_axes_at(pieces, dims))), batch[operand]


def _meet_ragged_dot(eqn, operand, pieces):
  numbers = eqn.params['ragged_dot_dimension_numbers']
  contracting, batch = numbers.dot_dimension_numbers
  groups = numbers.rhs_group_dimensions if operand else ()
  dims = contracting[operand]
  return tuple(sorted(_axes_at(pieces, dims))), (*batch[operand], *groups)


def _meet_conv(eqn, operand, pieces):
  numbers = eqn.params['dimension_numbers']
  if not operand:
    return tuple(sorted(_axes_at(pieces, numbers.lhs_spec[1:]))), ()
  # The window before the channels, as a kernel [h, w, in, out] has them.
  _, feature, *window = numbers.rhs_spec
  contracted = _axes_at(pieces, (*window, feature))
  return contracted, (), eqn.params['feature_group_count']


def _meet_gather(eqn, operand, pieces):
  if operand:
    return (), ()
  # A row is what comes whole: its axes are not those that the indices choose in.
  sizes, shape = eqn.params['slice_sizes'], eqn.invars[0].aval.shape
  rows = table_rows.chosen(eqn.params['dimension_numbers'], sizes, shape)
  row = [i for i, n in enumerate(shape) if sizes[i] == n and i not in rows]
  return tuple(sorted(_axes_at(pieces, row))), ()


_MEETINGS: dict[str, Callable] = {
  'conv_general_dilated': _meet_conv,
  'dot_general': _meet_dot,
  'gather': _meet_gather,
  'ragged_dot_general': _meet_ragged_dot,
}


def _same(asked, at, inputs):
  return inputs


_Uses.rules = {
  **dict.fromkeys(moved.UNCHANGED, _same),
  **dict.fromkeys(
    ('checkpoint', 'remat', 'remat2', 'custom_jvp_call', 'custom_vjp_call'),
    _enter_and_end,
  ),
}
