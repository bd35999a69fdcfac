"""Which operations leaves of codes do by themselves: one table.

A leaf that is not in a row becomes dense under that primitive. The functions are in
the file of their operation; `register` gives them to `lift`.
"""

import jax
from jax import lax

from jaxopt_compress.core import lift
from jaxopt_compress.quantization import backward
from jaxopt_compress.quantization import cache
from jaxopt_compress.quantization import conv
from jaxopt_compress.quantization import dot
from jaxopt_compress.quantization import gather
from jaxopt_compress.quantization import joins
from jaxopt_compress.quantization import moves
from jaxopt_compress.quantization import product as product_lib
from jaxopt_compress.quantization import qarray
from jaxopt_compress.quantization import ragged
from jaxopt_compress.quantization import straight
from jaxopt_compress.quantization import trained

QArray, QDotArray = qarray.QArray, qarray.QDotArray
FakeQuant, QCache = trained.FakeQuant, cache.QCache

# primitive: (of a QArray, of a QDotArray on its codes, what training must know).
# JAX exports `lax.ragged_dot_general`, but not its primitive: a name does.
PRODUCTS = {
  lax.dot_general_p: (dot.weight_only, dot.on_codes, dot.PRODUCT),
  lax.conv_general_dilated_p: (conv.weight_only, conv.on_codes, conv.PRODUCT),
  'ragged_dot_general': (ragged.weight_only, ragged.on_codes, ragged.PRODUCT),
}

# (primitive, leaf, rule), beside products and moves.
ROWS = (
  (lax.gather_p, QArray, gather.gather_rows),
  (lax.gather_p, QDotArray, gather.gather_weight_rows),
  (lax.gather_p, FakeQuant, trained.gather_rule),
  (lax.gather_p, QCache, cache.gather_rows),
  (lax.dot_general_p, QCache, cache.dot_rows),
)

# (primitive, rule): all operands that are caches reach the rule as they are.
WRITES = (
  (lax.dynamic_update_slice_p, cache.update_slice),
  (lax.scatter_p, cache.scatter),
  (lax.concatenate_p, cache.concatenate),
  ('stack', cache.stack),
)


def register() -> None:
  """Tells `lift` of all rules; once, when the package is imported."""
  for primitive, (weight_only, on_codes, how) in PRODUCTS.items():
    lift.rule(primitive, QArray)(weight_only)
    lift.rule(primitive, QDotArray)(_straight_through(on_codes, how))
    lift.rule(primitive, FakeQuant)(trained.product_rule(primitive, how))
    unrounded = backward.product_rule(on_codes, how)
    lift.rule(primitive, backward.Unrounded)(unrounded)
  for primitive, move in (moves.MOVES | joins.MOVES).items():
    lift.rule(primitive, QArray)(move)
    lift.rule(primitive, QDotArray)(moves.of_weight(primitive, move))
    lift.rule(primitive, FakeQuant)(trained.move_rule(primitive))
  for primitive, move in moves.MOVES.items():
    lift.rule(primitive, QCache)(cache.move_rule(primitive, move))
    lift.rule(primitive, backward.Unrounded)(backward.move_rule(primitive))
  for primitive, join in joins.JOINS.items():
    for leaf_type, rule in (
      (QArray, join),
      (QDotArray, joins.of_weights(join)),
      (FakeQuant, trained.join_rule(primitive)),
    ):
      lift.rule(primitive, leaf_type, together=True)(rule)
  for primitive, leaf_type, rule in ROWS:
    lift.rule(primitive, leaf_type)(rule)
  for primitive, rule in WRITES:
    lift.rule(primitive, QCache, together=True)(rule)


def _straight_through(on_codes, how: product_lib.Product):
  """A product of codes, with the derivative of that of what they stand for."""

  def product_of_codes(*operands, **params):
    fixed = jax.tree.map(lax.stop_gradient, operands)
    out = on_codes(*fixed, **params)
    if isinstance(out, lift.Dense):
      return out
    side = [isinstance(x, QDotArray) for x in operands].index(True)

    def dense(*operands):
      leaf = operands[side]
      values = how.round_other(operands, side, leaf, params)
      values[side] = leaf.materialize()
      return how.bind(*values, **params)

    return straight.as_if(dense, out, *operands)

  return product_of_codes
