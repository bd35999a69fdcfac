"""One cell of the benchmark: rows [m, k] times a weight [k, n], by everybody.

Each result is compared with the float64 product of the rows and the numbers that its
weight stands for: integers to the bit, others within the bound of their leaf,

    |y - x @ w|  <=  (s / 2 + 2^-20 max|x|) sum_k |w|,

s the step that a row of x is rounded to, 0 where it is not.
"""

from collections.abc import Callable
import os
import tempfile
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import kernels
from jaxopt_compress.kernels.cpu import native
from jaxopt_compress.kernels.leaves import plan as plan_lib
from launch.bench.kernels import turns

AUTO = ''  # the path that the library chooses
VNNI, VBMI2 = 'avx512-vnni', 'avx512-vbmi2'
FLOAT, XLA, CODES = 'XLA float32', 'XLA int8', 'int8 codes'


class Ours(NamedTuple):
  """A kind of weight.

  Attributes:
    scheme: how it is rounded.
    kind: what it computes, in the words of `rivals`.
    sparsity: how it is pruned before.
  """

  scheme: jc.Scheme
  kind: str
  sparsity: jc.Sparsity | None = None


_A8 = jc.schemes.Spec('int8', 'token')
OURS = {
  'int8': Ours(jc.W8A8, 'int8'),
  'int4 g128 W4A8': Ours(jc.W4A8, 'int4 A8'),
  'int4 g128 W4A16': Ours(jc.W4A16, 'int4 A16'),
  'MXFP4 A8': Ours(jc.Scheme(jc.schemes.MXFP4.weight, act=_A8), 'MXFP4 A8'),
  'MXFP4 A16': Ours(jc.Scheme(jc.schemes.MXFP4.weight), 'MXFP4 A16'),
  'NF4': Ours(jc.schemes.NF4, 'NF4'),
  '2:4 int8': Ours(jc.W8A8, 'int8', jc.Sparsity(kind='n_m', n=2, m=4)),
  '50% int8': Ours(jc.W8A8, 'int8', jc.Sparsity(0.5)),
}
# With so few rows a product may take less time than its call. With more, a program of
# many products would mostly copy operands and results.
_SHORT = 8
_UNROUNDED = ('float32', 'int4 A16', 'MXFP4 A16', 'NF4')


class Row(NamedTuple):
  """What is known of one contestant.

  Attributes:
    name, path: who; of a rival AUTO, or the path that it is confined to.
    kind: what it computes.
    seconds: [rounds] of a call from Python.
    looped: [rounds] of a product inside a program of many; for many rows, of a
      call.
    nbytes: of its weight; 0 for a rival.
    error: |y - exact| / |exact|.
    right: whether every entry is within its bound; True for a rival.
    rival: whether it is one.
  """

  name: str
  path: str
  kind: str
  seconds: np.ndarray
  looped: np.ndarray
  nbytes: int
  error: float
  right: bool
  rival: bool


class Cell(NamedTuple):
  """Everybody at one size.

  Attributes:
    m, k, n: the size.
    rows: of the table.
    ceilings: 'read' in GB/s, 'vnni' and 'amx' in GOP/s.
  """

  m: int
  k: int
  n: int
  rows: list[Row]
  ceilings: dict[str, float]

  def find(self, name: str, path: str = AUTO) -> Row | None:
    found = [r for r in self.rows if (r.name, r.path) == (name, path)]
    return found[0] if found else None

  def best_rival(self, row: Row) -> Row | None:
    """The fastest that computes the same, on no other instructions."""
    able = [r for r in self.rows if r.rival and r.kind == row.kind]
    able = [r for r in able if r.path == row.path]
    return min(able, key=lambda r: np.median(r.seconds), default=None)

  def gops(self, row: Row) -> float:
    return 2e-9 * self.m * self.k * self.n / np.median(row.looped)

  def gbytes(self, row: Row) -> float:
    return 1e-9 * row.nbytes / np.median(row.looped)

  def read_share(self, row: Row) -> float:
    return self.gbytes(row) / self.ceilings['read']


class Weights:
  """A weight [k, n] in every form, and a folder of it for rivals."""

  def __init__(self, k: int, n: int, folder: str):
    self.k, self.n, self.folder = k, n, folder
    rng = np.random.default_rng(k + n)
    w = rng.standard_normal((k, n), np.float32) / np.float32(k**0.5)
    self.dense = {'kernel': jnp.asarray(w)}
    one_row = jax.ShapeDtypeStruct((1, k), jnp.float32)
    uses = jc.uses(self.apply)(self.dense, one_row)
    self.leaves, self.packed = {}, {}
    for name, ours in OURS.items():
      params = self.dense
      if ours.sparsity:
        rule = [('.*', ours.sparsity)]
        params = jc.freeze(jc.prune(params, rule, uses))
      q = self.leaves[name] = jc.quantize(params, [('.*', ours.scheme)], uses)
      self.packed[name] = jc.pack(q, uses, sparse=True)
    int8, int4, nf4 = map(self.weight, ('int8', 'int4 g128 W4A8', 'NF4'))
    save(
      folder,
      w=w,
      int8=int8.numbers,
      int8_scale=int8.scale_hat,
      int4=int4.numbers,
      int4_scale=int4.scale_hat,
      nf4=nf4.codes,
      nf4_scale=nf4.scale_hat,
    )

  def apply(self, params: Any, x: jax.Array) -> jax.Array:
    return x @ params['kernel']

  def values(self, name: str) -> np.ndarray:
    """[k, n] that the weight of a contestant or a kind stands for."""
    if name in (FLOAT, 'float32'):
      return np.asarray(self.dense['kernel'])
    if name in (CODES, 'codes'):
      return np.asarray(self.weight('int8').numbers, np.float32)
    kinds = {ours.kind: own for own, ours in reversed(OURS.items())}
    name = 'int8' if name == XLA else kinds.get(name, name)
    return np.asarray(jc.materialize(self.leaves[name]['kernel']))

  def weight(self, name: str) -> jc.QArray:
    """Of a contestant, before it is packed."""
    leaf = self.leaves[name]['kernel']
    return getattr(leaf, 'weight', leaf)


def save(folder: str, **arrays):
  for name, array in arrays.items():
    np.save(os.path.join(folder, f'{name}.npy'), np.asarray(array))


def rounded(x: np.ndarray) -> np.ndarray:
  """int8 codes of rows."""
  scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
  return np.rint(x / scale).astype(np.int8)


class Program(NamedTuple):
  """What JAX compiles: `apply(params, x)`, packed products on a path."""

  name: str
  path: str
  kind: str
  apply: Callable
  params: Any
  x: jax.Array

  def compiled(self) -> Callable[[], jax.Array]:
    """A call of it from Python."""
    return self._compiled(self.apply, self.x)

  def players(
    self, call: Callable[[], jax.Array], budget: float
  ) -> dict[Any, turns.Contestant]:
    """The call, and a program that does it as often as fits a turn."""
    single = turns.here(call)
    seconds = min(single.turn(1), single.turn(1))
    found = {(self.name, self.path): single}
    times = int(min(0.5 * budget / seconds, 64))
    if times > 1 and len(self.x) <= _SHORT:
      xs = jnp.stack([self.x] * times)

      def apply_to_each(params, xs):
        return jax.lax.map(lambda x: self.apply(params, x), xs)

      many = turns.here(self._compiled(apply_to_each, xs))

      def turn(calls):
        return many.turn(max(calls // times, 1)) / times

      found[self.name, self.path, 'looped'] = single._replace(turn=turn)
    return found

  def _compiled(self, f, x):
    f = jax.jit(f)
    jax.block_until_ready(f(self.params, x))
    return lambda: f(self.params, x)


def programs(
  weights: Weights, x: jax.Array, codes: jax.Array, paths: list[str]
) -> list[Program]:
  """XLA's, and ours on each path."""
  lifted = jc.lift(weights.apply)
  found = [
    Program(FLOAT, AUTO, 'float32', weights.apply, weights.dense, x),
    Program(XLA, AUTO, 'int8', lifted, weights.leaves['int8'], x),
  ]
  for path in paths:
    found.append(_integers(weights, codes, path))
    for name, ours in OURS.items():
      params = on_path(path, weights.packed[name])
      found.append(Program(name, path, ours.kind, lifted, params, x))
  return found


def on_path(path: str, params: Any) -> Any:
  """Packed leaves whose products take a path."""

  def moved(leaf):
    if path == AUTO or not isinstance(leaf, kernels.PackedArray):
      return leaf
    # Cores with AVX512-VNNI have instructions for what has no zeros as well.
    thin = leaf.plan.sparse is not None and VBMI2 in native.paths()
    best = VBMI2 if thin and path == VNNI else path
    return plan_lib.with_paths(leaf, ((1, best),))

  return jax.tree.map(moved, params, is_leaf=jc.is_compressed)


def _integers(weights, codes, path):
  """int8 times int8 to int32."""
  how = dict(format='int8', k=weights.k, n=weights.n, group=weights.k)
  how |= dict(rounding=native.Rounding(act=native.Act.CODES))
  how |= dict(out_dtype=jnp.int32, path=path)

  def product(w, x):
    return native.matmul(x, w, None, **how)

  payload = plan_lib.part(weights.packed['int8']['kernel'], 'payload')
  return Program(CODES, path, 'codes', product, payload, codes)


def measure(
  weights: Weights,
  m: int,
  paths: list[str],
  rivals: list[turns.Rival],
  ceilings: dict[str, turns.Contestant],
  *,
  rounds: int,
  budget: float,
) -> Cell:
  """Runs everybody on `m` rows, and compares their results."""
  x = np.random.default_rng(m).standard_normal((m, weights.k), np.float32)
  codes = rounded(x)
  exact = _Exact(weights, x, codes)
  players, facts = dict(ceilings), {}
  for p in programs(weights, jnp.asarray(x), jnp.asarray(codes), paths):
    try:
      call = p.compiled()
    except jax.errors.JaxRuntimeError as e:
      print(f'{p.name} {p.path} does not take part: {e}', flush=True)
      continue
    checked = exact.check(p.name, p.kind, call())
    players |= p.players(call, budget)
    facts[p.name, p.path] = p.kind, jc.nbytes(p.params), *checked, False
  with tempfile.TemporaryDirectory() as folder:
    save(folder, x=x, codes=codes)
    for rival in rivals:
      for name, kind in rival.rows(folder).items():
        error, _ = exact.check(kind, kind, rival.result(name))
        players[name, rival.path] = rival.contestant(name)
        facts[name, rival.path] = kind, 0, error, True, True
  took = turns.interleave(players, rounds, budget)
  rows = [
    Row(*key, kind, took[key], took.get((*key, 'looped'), took[key]), *rest)
    for key, (kind, *rest) in facts.items()
  ]
  tops = {name: float(np.median(took[name])) for name in ceilings}
  return Cell(m, weights.k, weights.n, rows, tops)


class _Exact:
  """Float64 products of a few of the rows."""

  def __init__(self, weights, x, codes):
    self._weights, self._found = weights, {}
    self._at = np.unique(np.linspace(0, len(x) - 1, 8).astype(int))
    self._x, self._codes = x[self._at], codes[self._at]

  def check(self, name, kind, y) -> tuple[float, bool]:
    """(relative error, whether each entry is within its bound)."""
    if name not in self._found:
      self._found[name] = self._of(name, kind)
    want, bound = self._found[name]
    y = np.asarray(y)[self._at].astype(np.float64)
    error = np.linalg.norm(y - want) / np.linalg.norm(want)
    return float(error), bool((np.abs(y - want) <= bound).all())

  def _of(self, name, kind):
    w = self._weights.values(name).astype(np.float64)
    if kind == 'codes':
      return self._codes @ w, 0.0
    largest = np.abs(self._x).max(-1, keepdims=True)
    step = 0.0 if kind in _UNROUNDED else 1 / 127
    bound = (step / 2 + 2.0**-20) * largest * np.abs(w).sum(0, keepdims=True)
    return self._x.astype(np.float64) @ w, bound
