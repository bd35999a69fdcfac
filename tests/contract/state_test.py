"""State that Flax modules change in place, where they hold compressed weights."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

RULES = [(r'.*/kernel', 'W8A8'), (r'.*', None)]
X = jax.random.normal(jax.random.key(0), (4, 1, 8))


def call(model, x):
  return model(x)


def quantized(model):
  return jc.quantize(model, RULES, jc.uses(call)(model, X))


def decoder():
  model = nnx.MultiHeadAttention(2, 8, decode=True, rngs=nnx.Rngs(0))
  model.init_cache((4, 4, 8))
  return model


def normed():
  linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
  return nnx.Sequential(linear, nnx.BatchNorm(8, rngs=nnx.Rngs(0)))


def dropped():
  linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
  return nnx.Sequential(linear, nnx.Dropout(0.5, rngs=nnx.Rngs(0)))


class StateTest(parameterized.TestCase):
  @parameterized.product(
    case=((decoder, 'cache_index'), (normed, 'mean'), (dropped, 'count')),
    wrap=(
      lambda f: f,
      jc.lift,
      nnx.jit,
      lambda f: nnx.jit(jc.lift(f)),
      lambda f: jc.lift(nnx.jit(f)),
    ),
  )
  def test_a_model_changes_as_it_did(self, case, wrap):
    make, name = case
    model = quantized(make())
    dense = jc.materialize(model)
    for _ in range(2):
      y, want = wrap(call)(model, X), call(dense, X)
      np.testing.assert_allclose(y, want, atol=0.03)
    want = dict(jc.rules.named_leaves(nnx.state(dense)))
    got = dict(jc.rules.named_leaves(nnx.state(model)))
    self.assertEqual(list(got), list(want))
    [path] = [path for path in got if path.endswith(name)]
    self.assertGreater(float(jnp.abs(got[path]).max()), 0)
    np.testing.assert_allclose(got[path], want[path], atol=0.01)

  @parameterized.parameters(
    (decoder, 'cache_index'),
    (normed, 'layers/1/mean'),
    (dropped, 'layers/1/rngs/count'),
  )
  def test_a_change_that_nobody_would_see_is_refused(self, make, name):
    with self.assertRaisesRegex(
      ValueError, f'{name}/value is changed in place'
    ):
      jax.jit(jc.lift(call))(quantized(make()), X)

  @parameterized.parameters(
    (lambda m: setattr(m, 'n', 1), '0'),
    (lambda m: setattr(m, 'h', nnx.Variable(jnp.ones(2))), 'h/value'),
    (lambda m: setattr(m.layers[0], 'bias', None), '0'),
    (lambda m: m.layers[0].kernel.set_metadata(seen=True), '0'),
  )
  def test_a_model_gets_and_loses_what_it_did(self, change, name):
    model, dense = quantized(normed()), normed()
    with self.assertRaisesRegex(ValueError, f'^{name} is changed in place'):
      jax.jit(jc.lift(change))(model)
    before = nnx.graphdef(dense)
    for m, f in ((model, jc.lift(change)), (dense, change)):
      self.assertIsNone(f(m))
    self.assertNotEqual(nnx.graphdef(dense), before)
    self.assertEqual(nnx.graphdef(jc.materialize(model)), nnx.graphdef(dense))
    self.assertIn('int8', model.layers[0].kernel.get_value().describe())

  @parameterized.parameters(
    ('h', lambda d: d.update(h=jnp.ones(2))),
    ('n', lambda d: d.update(n=d['n'] + 1)),
    ('w', lambda d: d.update(w=d['w'] * 2)),
  )
  def test_what_stays_in_a_dict_is_refused(self, name, change):
    leaves = jc.quantize({'w': X[0]}, [('w', 'int8')], uses=in_out.IN_OUT)
    with self.assertRaisesRegex(ValueError, f'^{name} is changed in place'):
      jc.lift(change)({**leaves, 'n': 1.0})

  @parameterized.parameters(jc.lift, lambda f: jc.lift(nnx.jit(f)))
  def test_a_model_that_does_not_is_called(self, wrap):
    model = quantized(normed())
    model.eval()
    y = wrap(call)(model, X)
    np.testing.assert_allclose(y, call(jc.materialize(model), X), atol=0.05)

  @parameterized.parameters((decoder, 'cache_index'), (normed, 'mean'))
  def test_what_changes_is_returned(self, make, name):
    model = make()
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def step(params, rest, x):
      model = nnx.merge(graphdef, params, rest, copy=True)
      return model(x), nnx.state(model, nnx.Not(nnx.Param))

    uses = jc.uses(step)(params, rest, X)
    lifted = jax.jit(jc.lift(step))
    qparams = jc.quantize(params, RULES, uses)
    for _ in range(3):
      _, rest = lifted(qparams, rest, X)
      call(model, X)
    want = dict(jc.rules.named_leaves(nnx.state(model)))
    [(path, got)] = [
      p for p in jc.rules.named_leaves(rest) if p[0].endswith(name)
    ]
    self.assertGreater(float(jnp.abs(got).max()), 0)
    np.testing.assert_allclose(got, want[path], atol=0.01)


if __name__ == '__main__':
  absltest.main()
