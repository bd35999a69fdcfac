"""Programs that make their weights: what becomes a leaf, and that results stay."""

from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import made_weights
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis.hoist import hoist as hoist_lib

X, PROGRAMS = made_weights.X, made_weights.PROGRAMS


def shapes(weights):
  return {p: x.shape for p, x in jc.rules.named_leaves(weights)}


# A scan that stays whole runs compiled, also where JAX would run it turn by turn.
WHOLE_SCANS = 'through_scan', 'shared_over_layers'
# What is built again around its body.
BUILT = 'cell', 'rematted', 'twice_scanned', 'branches', 'looped', 'noisy'


class HoistTest(parameterized.TestCase):
  @parameterized.parameters(*PROGRAMS)
  def test_to_the_bit_operation_by_operation(self, name):
    fun, params, want = PROGRAMS[name]
    with jax.disable_jit(name not in WHOLE_SCANS):
      on_weights, weights = jc.hoist(fun)(params, X)
      expected, got = fun(params, X), on_weights(weights, X)
    self.assertEqual(shapes(weights), want)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    self.assertLessEqual(jc.nbytes(weights), jc.nbytes(params) * 17 / 16)
    # What is described without computing is what was made.
    like = jax.eval_shape(lambda p: p, params)
    described = hoist_lib.hoisted(fun)(like, X)
    self.assertEqual({n: d.shape for n, d in described.items()}, want)

  def test_values_are_those_of_the_equations(self):
    _, weights = jc.hoist(made_weights.jitted)(made_weights.V_AND_G, X)
    g, v = (np.float64(made_weights.V_AND_G[k]) for k in 'gv')
    want = g * v / np.sqrt((v**2).sum(0))
    np.testing.assert_allclose(weights['v'], want, rtol=1e-6)
    _, params, _ = PROGRAMS['standardised']
    _, weights = jc.hoist(made_weights.standardised)(params, X)
    w, gain = (np.float64(params['conv'][k]) for k in ('kernel', 'gain'))
    mean, var = w.mean((0, 1, 2)), w.var((0, 1, 2))
    np.testing.assert_allclose(
      weights['conv']['kernel'],
      gain * (w - mean) / np.sqrt(var + 1e-5),
      rtol=1e-5,
    )

  @parameterized.parameters(*BUILT)
  def test_compiled_and_for_another_batch(self, name):
    fun, params, _ = PROGRAMS[name]
    on_weights, weights = jc.hoist(fun)(params, X)
    x = jnp.concatenate([X, -X, X[:1]])
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
      jax.jit(on_weights)(weights, x),
      jax.jit(fun)(params, x),
    )

  @parameterized.named_parameters(
    ('missing', lambda w: {'v': w['v']}, 'it reads .*b.* besides'),
    ('more', lambda w: w | {'g': w['b']}, 'does not know .*g'),
    ('a_typo', lambda w: {'b': w['b'], 'vv': w['v']}, "Did you mean 'vv'"),
    ('a_type', lambda w: jc.cast(w, jnp.bfloat16), 'is bfloat16.*makes float32'),
    ('a_size', lambda w: w | {'v': w['v'][:2]}, r'\[2, 3\].*\[4, 3\]'),
    ('a_leaf', lambda w: jc.quantize(w, [('v', 'int8'), ('.*', None)], in_out.IN_OUT), r'jc\.lift'),
  )  # fmt: skip
  def test_refuses_other_weights(self, change, message):
    fun, params, _ = PROGRAMS['weight_norm']
    on_weights, weights = jc.hoist(fun)(params, X)
    with self.assertRaisesRegex(ValueError, message):
      on_weights(change(weights), X)

  @parameterized.parameters(
    ({'a/b': X, 'a': {'b': X}}, "Two parameters are named 'a/b'"),
    ({'a/b': X, 'a': X}, "'a/b' cannot be a leaf beside"),
  )
  def test_refuses_names_that_are_not_one_tree(self, params, message):
    def apply(p, x):
      return sum(y * x for y in jax.tree.leaves(p))

    with self.assertRaisesRegex(ValueError, message):
      jc.hoist(apply)(params, X)

  def test_another_shape_may_make_other_leaves(self):
    def apply(p, x):
      return x * jnp.exp(p['rates'][: len(x)])

    params = {'rates': jnp.ones((4, 4))}
    on_weights, weights = jc.hoist(apply)(params, jnp.ones((4, 4)))
    with self.assertRaisesRegex(ValueError, 'arguments like these'):
      on_weights(weights, X)

  def test_quantised_and_strict(self):
    for name in ('rematted', 'cell', 'standardised'):
      fun, params, _ = PROGRAMS[name]
      on_weights, weights = jc.hoist(fun)(params, X)
      uses = jc.uses(on_weights)(weights, X)
      rules = jc.rules_for(uses, at_least=0, **{
        'conv' if name == 'standardised' else 'dot': 'int8'
      })  # fmt: skip
      q = jc.quantize(weights, rules, uses)
      got = jax.jit(jc.lift(on_weights, strict=True))(q, X)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        got,
        on_weights(jc.materialize(q), X),
      )

  def test_leaves_of_parameters_that_are_compressed(self):
    fun, params, _ = PROGRAMS['one_plus']
    q = jc.quantize(params, [('w', 'int8'), ('.*', None)], in_out.IN_OUT)
    on_weights, weights = jc.hoist(fun)(q, X)
    self.assertIs(type(weights['w']), jc.QArray)
    np.testing.assert_array_equal(
      jc.lift(on_weights)(weights, X), jc.lift(fun)(q, X)
    )

  def test_sharded_and_in_a_shard_map(self):
    fun, params, _ = PROGRAMS['scanned']
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4,), ('d',), axis_types=(auto,))
    columns = jax.sharding.NamedSharding(mesh, jax.P(None, None, 'd'))
    on_weights, weights = jc.hoist(fun)(jax.device_put(params, columns), X)
    self.assertEqual(weights['layers']['v'].sharding.spec, columns.spec)
    x = jnp.concatenate([X, -X])
    cut = jax.shard_map(
      on_weights,
      mesh=mesh,
      in_specs=(jax.P(), jax.P('d')),
      out_specs=jax.P('d'),
    )
    expected = fun(params, x)
    for run in (on_weights, cut):
      np.testing.assert_allclose(
        jax.jit(run)(weights, x), expected, rtol=1e-5, atol=1e-6
      )
