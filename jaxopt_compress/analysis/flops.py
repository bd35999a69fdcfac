"""Operations of a program, counted from its jaxpr.

    dot_general   2 * (size of the left operand) * (free columns of the right)
    convolution   2 * batch * features out * features in per group * taps
    elementwise   one per element of the result, whatever the function (exp, +)
    reductions    one per element of the operand
    moving data   nothing (reshape, gather, broadcast, convert, all_gather, ...)

Floating and integer operations count alike, so an int8 program shows what it
spends on rounding and scaling. Taps that fall on padding are not counted, which
is also XLA's convention (`jax.stages.Lowered.cost_analysis`); a result that
nobody reads is not counted either. Zeros in a mask do not reduce the count: the
dense program multiplies them all the same.
"""

import collections
from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax

from jaxopt_compress.analysis import walk

_MOVES_DATA = frozenset(
  """
    all_gather all_gather_invariant all_to_all bitcast_convert_type broadcast
    broadcast_in_dim concatenate convert_element_type copy copy_p create_token
    device_put dynamic_slice dynamic_update_slice empty expand_dims gather get
    iota mesh_cast name optimization_barrier pad pbroadcast pcast ppermute
    pvary random_unwrap random_wrap ref reshape reshard rev scatter
    sharding_constraint slice split squeeze stop_gradient swap transpose
    unstack
""".split()
)

# One operation an element is far off for these; the count says so.
_ESTIMATED = frozenset(
  """
    cholesky custom_call eig eigh fft ffi_call geqrf hessenberg
    householder_product io_callback lu pure_callback qr schur svd
    triangular_solve tridiagonal tridiagonal_solve
""".split()
)

# One operation for each element of the operand, not of the result.
_REDUCES = ('reduce', 'arg', 'cum', 'top_k', 'psum', 'pmax', 'pmin')


@dataclasses.dataclass(frozen=True)
class Count:
  """Operations by primitive, and what to know before quoting them."""

  by_primitive: dict[str, int]
  remarks: tuple[str, ...] = ()

  @property
  def total(self) -> int:
    return sum(self.by_primitive.values())


def count(fun: Callable[..., Any]) -> Callable[..., Count]:
  """The operations of `fun(*args)`, by primitive.

  Args:
    fun: any traceable function; `args` may be abstract (`ShapeDtypeStruct`).

  Returns:
    A function of the same arguments that returns a `Count`, largest first.
    A `while` loop counts as one turn and a `cond` as its dearest branch; both
    are said in `remarks`, as is what is only estimated. A `scan` counts its
    length, a `shard_map` all its devices.

  >>> import jax.numpy as jnp
  >>> count(lambda w, x: jnp.tanh(x @ w))(jnp.ones((4, 8)), jnp.ones((2, 4)))
  Count(by_primitive={'dot_general': 128, 'tanh': 16}, remarks=())
  """

  return lambda *args, **kwargs: of_program(
    jax.make_jaxpr(fun)(*args, **kwargs)
  )


def of_program(jaxpr: Any) -> Count:
  """The operations of a program that was traced."""
  remarks = {}
  ops = _jaxpr(jaxpr, remarks)
  return Count(dict(ops.most_common()), tuple(remarks))


def flops(fun: Callable[..., Any]) -> Callable[..., int]:
  """The total of `count`: how many operations `fun(*args)` takes."""
  return lambda *args, **kwargs: count(fun)(*args, **kwargs).total


def _jaxpr(jaxpr, remarks) -> collections.Counter:
  total = collections.Counter()
  for eqn in walk.live(jaxpr):
    total.update(_equation(eqn, remarks))
  return total


def of_equation(eqn: Any) -> int:
  """The operations of one equation, or of what has its parameters and shapes."""
  return _equation(eqn, {}).total()


def _equation(eqn, remarks) -> collections.Counter:
  inside = walk.enter(eqn)
  if inside is not None:
    return _inside(eqn.primitive.name, inside, remarks)
  name = eqn.primitive.name
  if name in _ONE_EQUATION:
    ops = _ONE_EQUATION[name](eqn)
  elif 'window_dimensions' in eqn.params:
    ops = _windowed(eqn)
  elif name in _MOVES_DATA:
    return collections.Counter()
  elif name.startswith(_REDUCES):
    ops = _size(eqn.invars[0])
  elif name.startswith('scatter'):  # scatter-add and its kind; scatter moves
    ops = _size(eqn.invars[2])
  elif bodies := list(walk.unnamed_bodies(eqn)):
    return sum((_jaxpr(j, remarks) for j in bodies), collections.Counter())
  else:
    if name in _ESTIMATED:
      remarks[f'{name} counted as one operation an element'] = None
    ops = max((_size(v) for v in eqn.outvars), default=0)
  return collections.Counter({name: ops} if ops else {})


def _inside(name, inside, remarks) -> collections.Counter:
  """The operations of the programs inside an equation."""
  times = inside.times
  if isinstance(inside, walk.While):
    remarks['while counted as one turn'] = None
  if isinstance(inside, walk.Cond):
    remarks['cond counted as its dearest branch'] = None
  if times is None:
    remarks[f'{name} with a dynamic grid counted as one block'] = None
    times = 1
  each = [_jaxpr(body, remarks) for body in inside.bodies]
  if isinstance(inside, walk.Cond):
    return max(each, key=lambda ops: ops.total())
  total = sum(each, collections.Counter())
  return collections.Counter({key: times * n for key, n in total.items()})


def _size(var) -> int:
  return math.prod(getattr(var.aval, 'shape', ()))


# -- single equations ---------------------------------------------------------


def _dot(eqn) -> int:
  (_, contracted), (_, batch) = eqn.params['dimension_numbers']
  return _product(eqn, (*contracted, *batch))


def _ragged_dot(eqn) -> int:
  """Every row meets the matrix of its own group only."""
  numbers = eqn.params['ragged_dot_dimension_numbers']
  (_, contracted), (_, batch) = numbers.dot_dimension_numbers
  return _product(eqn, (*contracted, *batch, *numbers.rhs_group_dimensions))


def _product(eqn, rhs_not_free) -> int:
  lhs, rhs = eqn.invars[:2]
  free = [n for i, n in enumerate(rhs.aval.shape) if i not in rhs_not_free]
  return 2 * _size(lhs) * math.prod(free)


def _conv(eqn) -> int:
  p = eqn.params
  numbers = p['dimension_numbers']
  lhs, rhs = (v.aval.shape for v in eqn.invars)
  out = eqn.outvars[0].aval.shape
  taps = [
    _taps(
      lhs[numbers.lhs_spec[2 + i]],
      rhs[numbers.rhs_spec[2 + i]],
      out[numbers.out_spec[2 + i]],
      stride=p['window_strides'][i],
      low=p['padding'][i][0],
      lhs_dilation=p['lhs_dilation'][i],
      rhs_dilation=p['rhs_dilation'][i],
    )
    for i in range(len(lhs) - 2)
  ]
  batch, features = (out[i] for i in numbers.out_spec[:2])
  # The kernel's input features are already those of one group.
  return 2 * batch * features * rhs[numbers.rhs_spec[1]] * math.prod(taps)


def _taps(size, kernel, out, *, stride, low, lhs_dilation, rhs_dilation) -> int:
  """Pairs (output, kernel element) of one axis that meet a real input."""
  last = (size - 1) * lhs_dilation
  return sum(
    0 <= at <= last and at % lhs_dilation == 0
    for o in range(out)
    for at in (o * stride - low + k * rhs_dilation for k in range(kernel))
  )


def _windowed(eqn) -> int:
  """Pooling and its gradient: every window looks at all of its elements."""
  scatters = eqn.primitive.name == 'select_and_scatter_add'
  windows = eqn.invars[0] if scatters else eqn.outvars[0]
  return _size(windows) * math.prod(eqn.params['window_dimensions'])


def _sort(eqn) -> int:
  operand = eqn.invars[0]
  length = operand.aval.shape[eqn.params['dimension']]
  return _size(operand) * max(length - 1, 0).bit_length()


_ONE_EQUATION = {
  'conv_general_dilated': _conv,
  'dot_general': _dot,
  'ragged_dot_general': _ragged_dot,
  'sort': _sort,
}
