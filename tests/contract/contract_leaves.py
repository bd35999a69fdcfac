"""The leaves of the contract: `LEAVES[name] -> Leaf(compress, rounds)`.

A new leaf type adds a row, and must then pass all of contract_test.
"""

import re
import tempfile
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.pruning import masked_array
from jaxopt_compress.pruning import masks
from jaxopt_compress.pruning.storage import bitmask
from jaxopt_compress.pruning.storage import n_m_array
from jaxopt_compress.pruning.storage import sparse_codes


class Leaf(NamedTuple):
  """How a row makes its leaves, and how far it may be from the law.

  `rounds` is the relative error, over the largest output, that rounding the other
  operand may add: leaves that round activations carry their bound here.
  """

  compress: Any  # (params, uses) -> params with leaves
  rounds: float = 0.0


def _weights(params, uses):
  return [
    path for path, _ in jc.rules.named_leaves(params) if is_weight(uses[path])
  ]


def is_weight(used):
  return any(u.contracted for u in used)


def _rules(params, uses, value):
  rules = [(re.escape(p), value) for p in _weights(params, uses)]
  return [*rules, (r'.*', None)]


def _stored(scheme):
  return lambda params, uses: jc.quantize(
    params, _rules(params, uses, scheme), uses
  )


def _trained(scheme):
  def compress(params, uses):
    comp = jc.fake_quantize(_rules(params, uses, scheme), uses)
    return comp.apply(params, comp.init(params))

  return compress


def _mask(params, uses):
  chosen = set(_weights(params, uses))

  def with_mask(path, x):
    if path not in chosen:
      return x
    return masked_array.Masked(x, jnp.abs(x) > jnp.median(jnp.abs(x)))

  return jc.rules.map_named(with_mask, params)


def _scored(params, uses):
  """Masks whose weights have learned scores beside them."""

  def with_scores(x):
    if not isinstance(x, masked_array.Masked):
      return x
    return masked_array.Masked(x.value, x.mask, jnp.cos(x.value))

  return jax.tree.map(
    with_scores, _mask(params, uses), is_leaf=jc.is_compressed
  )


def _pruned(store):
  """`store(x, axes)` of weights with zeros; sizes are known under jit too."""

  def compress(params, uses):
    chosen = set(_weights(params, uses))

    def stored(path, x):
      return store(x, uses_lib.axes(path, x, uses)) if path in chosen else x

    return jc.rules.map_named(stored, params)

  return compress


def _half(x, axes):
  """(the half with the largest magnitudes of each stacked weight, their axes)."""
  lead = max((x.ndim + a + 1 for a in axes.stacked), default=0)
  inner = tuple(range(lead, x.ndim))
  median = jnp.median(jnp.abs(x), axis=inner, keepdims=True)
  return jnp.where(jnp.abs(x) > median, x, 0), lead


def _bitmask(x, axes):
  half, lead = _half(x, axes)
  return bitmask.of_array(half, lead, -(-x[(0,) * lead].size // 2))


def _one_of_two(x, axes):
  # One of three along a window of three by three, of which every channel has its own.
  m, axis = min(
    (m, a) for m in (2, 3) for a in axes.contracted if not x.shape[a] % m
  )
  kept = masks.n_m(jnp.abs(x), 1, m, axis)
  return n_m_array.of_array(jnp.where(kept, x, 0), 1, m, axis)


def _sparse_codes(params, uses):
  half = _pruned(lambda x, axes: _half(x, axes)[0])(params, uses)

  def stored(path, q):
    if not jc.is_compressed(q):
      return q
    _, lead = _half(q.materialize(), uses_lib.axes(path, q, uses))
    rest = sparse_codes.rest_of(q)
    room = rest[(0,) * lead].size
    return jc.pruning.SparseCodes(
      bitmask.of_array(rest, lead, room), q.with_codes(None)
    )

  return jc.rules.map_named(stored, _stored(jc.W8A8)(half, uses))


def _adapted(scheme):
  """A frozen base beside adapters that have learned something."""

  def compress(params, uses):
    base = _stored(scheme)(params, uses)
    key = jax.random.key(5)
    adapters = jc.adapters.add_lora(
      base, _rules(params, uses, 2), uses, key=key
    )
    learned = jax.tree.map(
      lambda p: 0.1 * jax.random.normal(key, p.shape, p.dtype), adapters
    )
    return jc.adapters.with_lora(base, learned, uses)

  return compress


def _packed(scheme):
  def compress(params, uses):
    # Also those that `pack` would leave alone, as they are joined or turned first:
    # the law holds for packed leaves wherever they are met.
    anywhere = {
      path: tuple(use._replace(remade=()) for use in met)
      for path, met in uses.items()
    }
    return jc.pack(_stored(scheme)(params, uses), anywhere, target='cpu')

  return compress


_INT4_G4 = jc.Scheme(jc.schemes.Spec('int4', 'group', 4, scale='bfloat16'))

LEAVES = {
  'int8': Leaf(_stored(jc.W8A16)),
  'int4 g4': Leaf(_stored(_INT4_G4)),
  'int4 g4 asym': Leaf(_stored('int4 g4 asym')),
  'nvfp4': Leaf(_stored('e2m1 g4 nv')),
  'nf4 dq': Leaf(_stored('nf4 g4 dq')),
  'int8 x int8': Leaf(_stored(jc.W8A8), rounds=0.05),
  'int8 x int8, both asym': Leaf(
    _stored('int8 asym, int8 token asym'), rounds=0.05
  ),
  'fake int8 x int8': Leaf(_trained(jc.W8A8), rounds=0.05),
  'fake int4 of learned steps': Leaf(_trained('int4 asym lsq')),
  'packed int8': Leaf(_packed('int8')),
  'packed int4 asym x int8': Leaf(_packed('int4 asym, int8'), rounds=0.05),
  'adapters of nf4 dq': Leaf(_adapted('nf4 g4 dq')),
  'mask': Leaf(_mask),
  'mask of learned scores': Leaf(_scored),
  'bitmask': Leaf(_pruned(_bitmask)),
  '1:2': Leaf(_pruned(_one_of_two)),
  'bitmask of int8 x int8': Leaf(_sparse_codes, rounds=0.05),
  'fake int4 of a mask': Leaf(
    lambda params, uses: _trained(_INT4_G4)(_mask(params, uses), uses)
  ),
}


def loaded(tree, **options):
  """A tree that went through a file."""
  with tempfile.TemporaryDirectory() as folder:
    jc.save(f'{folder}/net', tree)
    return jc.load(f'{folder}/net', **options)


def rebuilt(tree):
  """A tree that went through a file, for a model that has its arrays."""
  like = jc.materialize(tree)
  plan = jc.Plan(jc.structure(lambda params: jnp.zeros(()))(like), {})
  with tempfile.TemporaryDirectory() as folder:
    jc.export.save_shrunk(f'{folder}/small', plan, tree)
    return jc.export.rebuild(
      lambda c: (None, like), {}, f'{folder}/small'
    ).params
