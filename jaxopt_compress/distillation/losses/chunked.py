"""Losses from hidden states and heads: all logits are never there at once.

    logits = hidden @ kernel + bias                        [positions, classes]
    loss   = sum over blocks of positions of  loss(logits of the block)

A loss is a sum over positions, so it is a sum over blocks, and so is its gradient.
Each block forms its logits, adds its loss and its gradient to the sums, and drops
them. With a block of as many positions as have a fixed number of logits, memory
grows neither with the classes nor with the positions: what is left are the arrays
that are given and their gradients. Liger (Hsu et al. 2024,
https://arxiv.org/abs/2410.10989, section 3.2) does so for the cross entropy; here it
is a function of any loss of this room.

    loss = chunked(losses.kl)
    total, count = loss(Logits(hidden, kernel), Logits(teacher_hidden, teacher_kernel))

The gradient is formed with the loss, in one pass: nothing is computed twice, and
nothing is computed for what nobody differentiates, such as a teacher.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.core import array
from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import positions
from jaxopt_compress.distillation.losses import blocks

SumAndCount = positions.SumAndCount
_LOGITS = 2**23  # of a block: 32 MiB in float32
_ARRAYS = (jax.Array, np.ndarray)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=('hidden', 'kernel', 'bias'),
  meta_fields=('tied', 'soft_cap'),
)
@dataclasses.dataclass(frozen=True)
class Logits:
  """hidden @ kernel + bias, not computed yet.

  Attributes:
    hidden: [..., features], what the head of a model is given.
    kernel: [features, classes], an array or a compressed leaf.
    bias: [classes], or None.
    tied: whether the kernel is a table of embeddings, [classes, features].
    soft_cap: c of c tanh(logits / c), or None.

  >>> logits = Logits(jnp.ones((2, 3)), jnp.ones((3, 5)), soft_cap=3.0).form()
  >>> logits.shape, round(float(logits[0, 0]), 3)  # 3 tanh(1)
  ((2, 5), 2.285)
  """

  hidden: jax.Array
  kernel: jax.Array | array.CompressedArray
  bias: jax.Array | None = None
  tied: bool = False
  soft_cap: float | None = None

  @property
  def classes(self) -> int:
    return self.kernel.shape[0 if self.tied else 1]

  def form(self) -> jax.Array:
    """The logits, [..., classes]."""
    return lift.lift(self._form)(self.hidden, self.kernel, self.bias)

  def of(self, hidden: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Logits of other hidden states; of zeros where the mask is 0."""
    if mask is not None:
      # What NaN there makes of a kernel's gradient no later `where` takes back.
      hidden = jnp.where(mask.astype(bool)[..., None], hidden, 0)
    return dataclasses.replace(self, hidden=hidden).form()

  def _form(self, hidden, kernel, bias):
    logits = jnp.dot(hidden, kernel.T if self.tied else kernel)
    if bias is not None:
      logits += jnp.expand_dims(bias, range(logits.ndim - 1))
    if self.soft_cap is None:
      return logits
    return self.soft_cap * jnp.tanh(logits / self.soft_cap)


def chunked(
  loss: Callable[..., SumAndCount], *, chunk: int | None = None
) -> Callable[..., SumAndCount]:
  """`loss` of logits that are formed block by block.

  Value and gradients are those of the loss of `Logits.form()`; sums over blocks are
  float32 at least. There is a gradient, but no forward mode. Jit the result: each
  eager call compiles anew.

  Under jit, of hidden states sharded over their first axis each device has a share
  in every block, and kernels may be sharded over their classes. The gradient of a
  kernel that all devices have is then reduced once a block; in a `shard_map` it is
  reduced once. In a scan that is differentiated as a whole, wrap the body in
  `jax.checkpoint`: each step would keep the gradient of its kernel.

  Args:
    loss: `(*args, mask=, **options) -> (sum, count)`, a sum over positions, as all
      losses of this room that compare no position with another. One that does is
      refused, also in a `functools.partial` and among the options (`soft=`); within
      a lambda it is not seen, and is another loss.
    chunk: the most positions of a block; None: as many as have 2**23 logits.

  Returns:
    A function like `loss`. Of its positional arguments one or more are `Logits`;
    the others are arrays with the same leading axes: labels, a teacher's logits,
    what `tail.compress` kept. All of them may be given by name. Options that only
    have a name, and what a partial has bound, are given to each block as they are.

  Raises:
    ValueError: the loss compares positions, as `dist` does; or, when called, no
      argument is `Logits`, or shapes do not fit.

  >>> from jaxopt_compress.distillation import losses
  >>> h, w, labels = jnp.ones((6, 3)), jnp.ones((3, 5)), jnp.zeros(6, int)
  >>> total, count = chunked(losses.cross_entropy, chunk=2)(Logits(h, w), labels)
  >>> round(float(total / count), 4)  # log 5
  1.6094
  """
  _check_parts(loss)
  if chunk is not None and not chunk >= 1:
    raise ValueError(f'chunk={chunk}: a block has at least one position.')

  @functools.wraps(loss)
  def chunked_loss(*args, mask=None, **options):
    for option in options.values():
      _check_parts(option)
    args, options = _placed(loss, args, options)
    lead, classes = _check(loss, args, mask)
    # What does not fit in a block is told of all logits, which are not computed.
    jax.eval_shape(
      lambda: loss(
        *(a.form() if _lazy(a) else a for a in args), mask=mask, **options
      )
    )
    cut = blocks.Cut.of(lead, chunk or max(_LOGITS // classes, 1))
    if mask is None and any(cut.padding):
      mask = jnp.ones(lead, jnp.float32)
    traced = {k: v for k, v in options.items() if isinstance(v, _ARRAYS)}
    fixed = {k: v for k, v in options.items() if k not in traced}
    heads = [
      dataclasses.replace(a, hidden=None) if _lazy(a) else None for a in args
    ]
    rows = [a.hidden if _lazy(a) else a for a in args]
    rows, rows_tree = jax.tree.flatten((rows, mask))
    shared, shared_tree = jax.tree.flatten((heads, traced))

    def of_block(values):
      block, mask = rows_tree.unflatten(values[: rows_tree.num_leaves])
      heads, traced = shared_tree.unflatten(values[rows_tree.num_leaves :])
      args = [
        row if head is None else head.of(row, mask)
        for row, head in zip(block, heads, strict=True)
      ]
      return loss(*args, mask=mask, **fixed, **traced)

    values = [
      *(cut(jnp.asarray(x)) for x in rows),
      *map(jnp.asarray, shared),
    ]
    # In a shard_map, what is the same on all devices counts as different from here
    # on: its gradient is then reduced over devices once, and not in each block.
    axes = frozenset().union(*(jaxprs.varying(jax.typeof(x)) for x in values))
    values = [jaxprs.vary(x, axes) for x in values]
    return blocks.Sum(of_block, len(rows), axes)(values)

  return chunked_loss


def _lazy(x) -> bool:
  return isinstance(x, Logits)


def _placed(loss, args, options):
  """(args, options) where what has a place among the arguments has no name."""
  args, options = list(args), dict(options)
  parameters = inspect.signature(loss).parameters.values()
  places = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
  for name in places[len(args) :]:
    if name not in options:
      break
    args.append(options.pop(name))
  return args, options


def _check_parts(loss):
  """Raises if a loss, or one that a partial has bound, compares positions."""
  if isinstance(loss, functools.partial):
    for part in (loss.func, *loss.args, *loss.keywords.values()):
      _check_parts(part)
  elif callable(loss) and 'axis_name' in inspect.signature(loss).parameters:
    raise ValueError(
      f'{getattr(loss, "__name__", loss)} compares positions with one another (it takes an axis_name),'
      ' so it is no sum over blocks. Form all logits for it.'
    )


def _check(loss, args, mask):
  """(the leading shape, the most classes) of the arguments."""
  name = getattr(loss, '__name__', loss)
  heads = [a for a in args if _lazy(a)]
  if not heads:
    raise ValueError(
      f'None of the {len(args)} positional arguments of the chunked {name} is'
      ' Logits(hidden, kernel). Of logits that are there, call the loss itself.'
    )
  for head in heads:
    _check_head(head)
  lead = tuple(heads[0].hidden.shape[:-1])
  for x in jax.tree.leaves(([a.hidden if _lazy(a) else a for a in args], mask)):
    if x.shape[: len(lead)] != lead:
      raise ValueError(
        f'An argument of the chunked {name} has shape {x.shape}; positions {lead}'
        f' are expected first, as those of hidden states {heads[0].hidden.shape}.'
      )
  if not math.prod(lead):
    raise ValueError(f'Positions {lead}: nothing to compare.')
  return lead, max(a.classes for a in heads)


def _check_head(head):
  hidden, kernel = head.hidden.shape, tuple(head.kernel.shape)
  axes = ('classes', 'features') if head.tied else ('features', 'classes')
  if not hidden or len(kernel) != 2 or kernel[head.tied] != hidden[-1]:
    raise ValueError(
      f'Hidden states {hidden} do not fit a kernel {kernel} of {axes}, as'
      f' tied={head.tied}: [..., features] and {axes} are expected.'
    )
  if head.bias is not None and head.bias.shape != (head.classes,):
    raise ValueError(
      f'A bias of shape {head.bias.shape} does not fit {head.classes} classes.'
    )
