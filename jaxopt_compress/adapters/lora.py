"""Low-rank adapters: a frozen weight, and a small product beside it that trains.

    W stands for  base + scale * a b,      x W = x base + scale * (x a) b

Hu et al. 2021, LoRA, https://arxiv.org/abs/2106.09685, eq. 3; over a base of four
bits Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314, eq. 5. What is
trained is a tree of its own, so no optimizer ever meets the base:

    qparams  = jc.quantize(params, [(r'.*/kernel', jc.schemes.NF4), (r'.*', None)], uses)
    adapters = jc.adapters.add_lora(qparams, [(r'.*/kernel', 8), (r'.*', None)], uses, key=key)
    y        = jc.lift(apply)(jc.adapters.with_lora(qparams, adapters, uses), x)
    merged, errors = jc.adapters.merge_lora(jc.adapters.with_lora(qparams, adapters, uses))

What is in and what is out of any weight (dense, attention, convolution, embedding)
is told by `uses`: contracted axes together are in, free axes together are out, and
each layer of a stack has factors of its own.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress import modules
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import rules as rules_lib

Adapters = dict[str, dict[str, jax.Array]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LoRA(array.CompressedArray):
  """Stands for `base + scale * sum_r a[..., r] b[..., r]`.

  Both factors have the axes of the leaf, and then the rank. Where the leaf is
  contracted b has size 1, where it is free a has, and both have the stacked axes;
  so a transpose, a reshape, a slice of a layer is done to all three alike, and a
  product multiplies by one factor and then by the other. The sum is never made.

  No gradient reaches the base. Its product is computed again in the backward pass,
  so what is kept for that are the codes, not the floats that they stand for.

  Attributes:
    base: an array, or any leaf that stands for one.
    a: [..., rank], size 1 on the free axes.
    b: [..., rank], size 1 on the contracted axes.
    scale: of the product.
  """

  base: Any
  a: jax.Array
  b: jax.Array
  scale: float = dataclasses.field(metadata={'static': True})

  shape = property(lambda self: tuple(self.base.shape))
  dtype = property(lambda self: jnp.dtype(self.base.dtype))

  def materialize(self):
    base = array.materialize(fixed(self.base))
    return (base + self.update()).astype(self.dtype)

  def update(self) -> jax.Array:
    """`scale * a b`, what was learned: `shape`, in the type of the factors."""
    return self.scale * outer(self.a, self.b, self.shape)

  def freeze(self):
    """The adapters stay beside what is stored of the base; see `merge_lora`."""
    frozen = array.is_compressed(self.base)
    base = self.base.freeze() if frozen else self.base
    return dataclasses.replace(self, base=base)

  def describe(self):
    base = self.base.dtype.name
    if array.is_compressed(self.base):
      base = self.base.describe()
    return f'{base} + rank {self.a.shape[-1]}'


def fixed(tree):
  """The same, without a derivative."""
  return jax.tree.map(lax.stop_gradient, tree)


# Axes that meet in a sum of products have names, which `einsum` sorts: those of the
# leaf, then those of what it meets (`products.py`), then the rank.
RANK = 'rank'


def axis_name(i: int) -> str:
  """The name of axis `i` of a leaf."""
  return f'leaf {i:02}'


class Factor(NamedTuple):
  """A factor without the axes that it is shared along.

  Attributes:
    array: [..., rank].
    axes: the name of the leaf's axis that each of its axes is, then `RANK`.
  """

  array: jax.Array
  axes: list[str]


def compact(factor, shape) -> Factor:
  """A factor of a leaf of that shape, on its own axes."""
  own = [i for i, n in enumerate(shape) if factor.shape[i] == n and n > 1]
  sizes = [shape[i] for i in own]
  names = [axis_name(i) for i in own]
  return Factor(factor.reshape(*sizes, factor.shape[-1]), [*names, RANK])


def outer(a: jax.Array, b: jax.Array, shape) -> jax.Array:
  """`sum_r a[..., r] b[..., r]`: what two factors of that shape stand for."""
  a, b = compact(a, shape), compact(b, shape)
  kept = sorted({*a.axes, *b.axes} - {RANK})
  return jnp.einsum(a.array, a.axes, b.array, b.axes, kept).reshape(shape)


# ------------------------------------------------------------ adding


def add_lora(
  params: Any,
  rules: Sequence[tuple[str, int | None]],
  uses: dict | None = None,
  *,
  key: jax.Array,
) -> Adapters:
  """Adapters for the weights that rules name, to be trained by any optimizer.

  `b` is zero, so that training starts from the base to the bit; `a` is Gaussian
  with variance 1 / in. Hu et al. 2021, section 4.1.

  Args:
    params: a tree of arrays and compressed leaves; not changed.
    rules: ordered `(regex, rank)`; None for a weight without an adapter. First
      match wins, every leaf must be covered and every rule used.
    uses: what `jc.uses(apply)(params, x)` returned. Without it only leaves called
      `kernel` are taken, [in, out] as Flax has them.
    key: consumed, for `a`; a different one is drawn for each leaf.

  Returns:
    `{path: {'a': [stacked..., in, rank], 'b': [stacked..., rank, out]}}`, in the
    type of the weight.

  Raises:
    ValueError: uncovered leaf, unused rule, a leaf whose axes cannot be told or
      which is not floating, or a rank that is not from 1 to min(in, out).

  >>> params = {'kernel': jnp.ones((6, 4))}
  >>> adapters = add_lora(params, [('kernel', 2)], key=jax.random.key(0))
  >>> [f.shape for f in jax.tree.leaves(adapters)]
  [(6, 2), (2, 4)]
  """
  ranks = rules_lib.match(rules, params)
  adapters = {}
  for i, (path, x) in enumerate(rules_lib.named_leaves(params)):
    if (rank := ranks[path]) is None:
      continue
    layout = _layout(path, x, uses)
    _check_rank(path, x, layout, rank)
    a_shape = (*layout.stack, layout.n_in, rank)
    a = jax.random.normal(jax.random.fold_in(key, i), a_shape, jnp.float32)
    adapters[path] = {
      'a': (a * layout.n_in**-0.5).astype(x.dtype),
      'b': jnp.zeros((*layout.stack, rank, layout.n_out), x.dtype),
    }
  return adapters


def with_lora(
  params: Any,
  adapters: Adapters,
  uses: dict | None = None,
  *,
  alpha: float = 16.0,
  rank_stabilized: bool = False,
) -> Any:
  """`params` with the adapters beside their weights: a tree with `LoRA` leaves.

  A function of `adapters`, so that a loss of it is differentiated and jitted as
  any other.

  Args:
    params: the frozen weights, as they were given to `add_lora`.
    adapters: what is trained.
    uses: as it was given to `add_lora`.
    alpha: the adapters' product is scaled by alpha / rank.
    rank_stabilized: by alpha / sqrt(rank), which keeps the size of updates of
      high rank. Kalajdzievski 2023, https://arxiv.org/abs/2312.03732, theorem 3.2.

  Raises:
    ValueError: adapters of a path that is not there, or of other shapes.
  """
  paths = [path for path, _ in rules_lib.named_leaves(params)]
  if unknown := [path for path in adapters if path not in paths]:
    raise ValueError(
      f'Adapters for {unknown[0]}, which is no leaf of these parameters; they'
      f' have {paths[:8]}. Pass the tree that add_lora was given.'
    )

  def adapted(path, x):
    if path not in adapters:
      return x
    layout, factors = _layout(path, x, uses), adapters[path]
    _check_factors(path, layout, factors)
    rank = factors['a'].shape[-1]
    return LoRA(
      fixed(x),
      layout.spread(factors['a'], layout.axes.contracted),
      layout.spread(jnp.swapaxes(factors['b'], -1, -2), layout.axes.free),
      alpha / (rank**0.5 if rank_stabilized else rank),
    )

  return modules.dress(rules_lib.map_named(adapted, params), params)


class _Layout(NamedTuple):
  """How a weight is a stack of matrices [in, out]."""

  shape: tuple[int, ...]
  axes: uses_lib.Axes

  def sizes(self, axes) -> tuple[int, ...]:
    return tuple(self.shape[a] for a in axes)

  @property
  def stack(self):
    return self.sizes(self.axes.stacked)

  @property
  def n_in(self):
    return math.prod(self.sizes(self.axes.contracted))

  @property
  def n_out(self):
    return math.prod(self.sizes(self.axes.free))

  def spread(self, factor, own) -> jax.Array:
    """[stacked..., n, rank] as [axes of the leaf..., rank], 1 on the others."""
    # Made with the axes in the order of `order`, then those of size one, and put
    # where the leaf has them.
    order = (*self.axes.stacked, *own)
    rest = [a for a in range(-len(self.shape), 0) if a not in order]
    sizes = (*self.sizes(order), *(1 for _ in rest), factor.shape[-1])
    place = [a + len(self.shape) for a in (*order, *rest)]
    back = sorted(range(len(place)), key=place.__getitem__)
    return factor.reshape(sizes).transpose(*back, len(place))


def _layout(path, x, uses) -> _Layout:
  return _Layout(tuple(x.shape), uses_lib.axes(path, x, uses))


def _check_rank(path, x, layout, rank):
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f'{path} is {x.dtype}; only floating leaves can be adapted. Put'
      f' (r"{path}", None) before the rule that takes it.'
    )
  most = min(layout.n_in, layout.n_out)
  if not isinstance(rank, int) or not 1 <= rank <= most:
    raise ValueError(
      f'{path} is {layout.n_in} x {layout.n_out}, and its rule gives rank'
      f' {rank!r}; an int from 1 to {most} is expected, or None for no adapter.'
    )


def _check_factors(path, layout, factors):
  rank = factors['a'].shape[-1]
  want = {
    'a': (*layout.stack, layout.n_in, rank),
    'b': (*layout.stack, rank, layout.n_out),
  }
  got = {name: tuple(f.shape) for name, f in factors.items()}
  if got != want:
    raise ValueError(
      f'The adapters of {path} have shapes {got}, and {want} are expected of a'
      f' weight {layout.shape}. Were they made for another model, or with other'
      ' uses?'
    )
