"""What is taken by rules, against the model written out."""

from absl.testing import absltest
from absl.testing import parameterized
import feature_programs as programs
from flax import nnx
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc


class FeaturesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('plain', programs.block),
    ('jit', programs.jit),
    ('remat', programs.remat),
    ('jit_in_remat', programs.jit_in_remat),
  )
  def test_values_and_gradients_are_those_of_the_model(self, f):
    want = programs.values(programs.PARAMS, programs.X)
    rules = [('c/mul', None), ('[ac]/.*', ...)][f is not programs.jit :]
    run = jax.jit(jc.features(f, rules))
    y, found = run(programs.PARAMS, programs.X)
    np.testing.assert_allclose(
      y, programs.block(programs.PARAMS, programs.X), rtol=1e-5, atol=1e-6
    )
    self.assertCountEqual(found, want)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      found,
      want,
    )
    square = lambda tree: sum(jnp.sum(v**2) for v in jax.tree.leaves(tree))
    got = jax.jit(jax.grad(lambda p: square(run(p, programs.X)[1])))(
      programs.PARAMS
    )
    expected = jax.grad(lambda p: square(programs.values(p, programs.X)))(
      programs.PARAMS
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      got,
      expected,
    )

  def test_vmap_and_compressed_leaves(self):
    run = jc.features(programs.block, [('a/w', ...)])
    found = jax.vmap(run, (None, 0))(programs.PARAMS, programs.X[:, None])[1][
      'a/w'
    ]
    want = programs.values(programs.PARAMS, programs.X)['a/w']
    np.testing.assert_allclose(found[:, 0], want, rtol=1e-5, atol=1e-6)
    codes = jc.quantize(
      programs.PARAMS, [('./w', jc.W8A16), ('.*', None)], uses=in_out.IN_OUT
    )
    want = programs.values(jc.materialize(codes), programs.X)['a/w']
    _, found = jax.jit(run)(codes, programs.X)
    np.testing.assert_allclose(found['a/w'], want, rtol=1e-5, atol=1e-5)

  def test_state_of_nnx_and_flags(self):
    graphdef, state = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))

    def apply(state, x, *, train):
      assert train is True
      return {'y': nnx.merge(graphdef, state)(x) * 2}

    out, found = jc.features(apply, [('kernel', ...)])(
      state, programs.X, train=True
    )
    np.testing.assert_allclose(found['kernel'] * 2, out['y'], rtol=1e-6)

  @parameterized.named_parameters(
    (
      'typo',
      programs.block,
      [('a/ww', ...)],
      'matches no value.*Products and sums',
    ),
    ('shadowed', programs.block, [('a/.*', ...), ('a/w', ...)], 'never used'),
    ('cond', programs.cond, [('a/w', ...)], 'branch of a cond'),
    ('while', programs.while_, [('a/w', ...)], 'in a while loop'),
    (
      'derivative',
      programs.given_back,
      [('a/w', ...)],
      'derivative of its own',
    ),
    ('no_layers', programs.block, [('a/w', 1)], 'is in no scan'),
    ('word', programs.block, [('a/w', 'all')], "'all' of a/w is asked for"),
    ('true', programs.block, [('a/w', True)], 'True of a/w is asked for'),
    ('pattern', programs.block, [('(', ...)], 'not a regular expression'),
    ('no_pairs', programs.block, ['a/w'], 'no pair'),
  )
  def test_refused(self, f, rules, error):
    with self.assertRaisesRegex(ValueError, error):
      jc.features(f, rules)(programs.PARAMS, programs.X)

  def test_a_layer_that_is_not_there(self):
    with self.assertRaisesRegex(ValueError, '3 layers, and no layer 3'):
      jc.features(programs.scan, [('a/w', 3)])(programs.STACKED, programs.X)

  def test_results_of_what_has_a_derivative_of_its_own(self):
    _, found = jc.features(programs.given_back, [('c/add', ...)])(
      programs.PARAMS, programs.X
    )
    np.testing.assert_allclose(
      found['c/add'],
      programs.block(programs.PARAMS, programs.X),
      rtol=1e-5,
      atol=1e-6,
    )


if __name__ == '__main__':
  absltest.main()
