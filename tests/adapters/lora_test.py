"""Adapters: gradients, memory, training."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import adapting
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.analysis import uses as uses_lib


def _model(**kwargs):
  sizes = dict(vocab=32, width=16, depth=2, heads=2, kv_heads=1, mlp_width=32)
  made = models.functional(
    models.build('decoder', **sizes, max_length=12, **kwargs)
  )
  x = jax.random.randint(jax.random.key(0), (4, 8), 0, 32)
  apply = lambda p, x: made.apply(p, made.variables, x)[0]
  return apply, made.params, x


WEIGHTS = r'blocks/.*/kernel|embed/.*'


class ModelTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    apply, cls.params, cls.x = _model()
    cls.apply = staticmethod(apply)
    cls.uses = jc.uses(cls.apply)(cls.params, cls.x)
    cls.q = jc.quantize(
      cls.params, [(WEIGHTS, jc.schemes.NF4), (r'.*', None)], cls.uses
    )
    cls.adapters = jc.adapters.add_lora(
      cls.q, [(WEIGHTS, 2), (r'.*', None)], cls.uses, key=jax.random.key(1)
    )
    cls.trained = jax.tree.map(
      lambda f: 0.3 * jax.random.normal(jax.random.key(2), f.shape),
      cls.adapters,
    )

  def tree(self, adapters, q=None):
    return jc.adapters.with_lora(
      self.q if q is None else q, adapters, self.uses
    )

  def loss(self, adapters, q=None):
    y = jc.lift(self.apply)(self.tree(adapters, q), self.x)
    return jnp.square(y).mean()

  def test_starts_at_the_base_to_the_bit(self):
    f = jax.jit(jc.lift(self.apply))
    np.testing.assert_array_equal(
      f(self.tree(self.adapters), self.x), f(self.q, self.x)
    )

  def test_nothing_becomes_dense(self):
    met = jc.explain(self.apply)(self.tree(self.trained), self.x)
    self.assertNotEmpty(met)
    self.assertEqual([m for m in met if not m.native], [])

  @parameterized.parameters(
    dict(scan=True), dict(scan=False), dict(scan=True, remat=True)
  )
  def test_gradient_is_that_of_the_dense_sum(self, **kwargs):
    apply, params, x = _model(**kwargs)
    uses = jc.uses(apply)(params, x)
    rules = [(WEIGHTS, jc.schemes.NF4), (r'.*', None)]
    q = jc.quantize(params, rules, uses)
    adapters = jc.adapters.add_lora(
      q, [(WEIGHTS, 2), (r'.*', None)], uses, key=jax.random.key(1)
    )
    adapters = jax.tree.map(lambda f: f + 0.1, adapters)

    def loss(adapters, call):
      return jnp.square(call(jc.adapters.with_lora(q, adapters, uses))).mean()

    got = jax.jit(jax.grad(lambda a: loss(a, lambda t: jc.lift(apply)(t, x))))
    want = jax.jit(
      jax.grad(lambda a: loss(a, lambda t: apply(jc.materialize(t), x)))
    )
    for a, b in zip(
      *map(jax.tree.leaves, (got(adapters), want(adapters))), strict=True
    ):
      self.assertGreater(np.abs(b).max(), 0)
      adapting.close(a, b, 1e-4)

  def test_no_gradient_reaches_the_base(self):
    grads = jax.jit(jax.grad(self.loss, argnums=(0, 1), allow_int=True))
    of_adapters, of_base = grads(self.trained, self.q)
    named = jc.rules.named_leaves(of_base, is_leaf=lambda x: False)
    frozen = [
      np.abs(g).max()
      for path, g in named
      if re.match(WEIGHTS, path) and g.dtype != jax.dtypes.float0
    ]
    self.assertNotEmpty(frozen)
    self.assertEqual(set(frozen), {0.0})
    self.assertGreater(float(optax.tree.norm(of_adapters)), 0)

  def test_vmap_over_adapters(self):
    pair = jax.tree.map(
      lambda f, g: jnp.stack([f, g]), self.adapters, self.trained
    )
    both = jax.vmap(self.loss)(pair)
    each = [self.loss(self.adapters), self.loss(self.trained)]
    np.testing.assert_allclose(both, each, rtol=1e-5)

  def test_trains_with_optax(self):
    optimizer = optax.adam(1e-2)
    state, adapters = optimizer.init(self.adapters), self.adapters
    step = jax.jit(jax.value_and_grad(self.loss))
    losses = []
    for _ in range(8):
      value, grads = step(adapters)
      updates, state = optimizer.update(grads, state)
      adapters = optax.apply_updates(adapters, updates)
      losses.append(float(value))
    self.assertLess(losses[-1], 0.7 * losses[0])

  def test_cut_over_devices(self):
    mesh = jax.make_mesh((4,), ('m',), axis_types=(jax.sharding.AxisType.Auto,))
    leaf, dense = adapting.leaf((16, 4), (-2,))
    x = jax.random.normal(jax.random.key(1), (3, 16))
    for spec in (P(None, 'm'), P('m', None)):
      contracts = spec == P('m', None)

      def f(w, x, contracts=contracts):
        y = x @ w
        return lax.psum(y, 'm') if contracts else y

      run = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(spec, P(None, 'm') if contracts else P()),
        out_specs=P() if contracts else P(None, 'm'),
      )
      adapting.close(jax.jit(jc.lift(run, strict=True))(leaf, x), x @ dense)
      placed = jc.parallel.device_put(leaf, mesh, spec)
      cut = {name: getattr(placed, name).sharding.spec for name in 'ab'}
      want = P('m', None, None) if contracts else P(None, 'm', None)
      self.assertEqual(cut['a' if contracts else 'b'], want)
      self.assertEqual(cut['b' if contracts else 'a'], P(None, None, None))


class MemoryTest(absltest.TestCase):
  def test_a_step_of_a_scanned_model_never_holds_its_dense_weights(self):
    layers, width = 12, 256

    def apply(p, x):
      body = lambda x, p: (x + jnp.tanh(x @ p['up']) @ p['down'], None)
      return lax.scan(body, x, p)[0]

    like = jax.ShapeDtypeStruct((layers, width, width), jnp.float32)
    params = {'up': like, 'down': like}
    x = jax.ShapeDtypeStruct((4, width), jnp.float32)
    uses = jc.uses(apply)(params, x)
    q = jax.eval_shape(
      lambda p: jc.quantize(p, [(r'.*', jc.schemes.NF4)], uses), params
    )
    adapters = jax.eval_shape(
      lambda p: jc.adapters.add_lora(
        p, [(r'.*', 4)], uses, key=jax.random.key(0)
      ),
      q,
    )

    def temporaries(call):
      loss = lambda a, q, x: jnp.square(
        call(jc.adapters.with_lora(q, a, uses), x)
      ).mean()
      step = jax.jit(jax.grad(loss)).lower(adapters, q, x).compile()
      return step.memory_analysis().temp_size_in_bytes

    weights = jc.nbytes(params)
    self.assertLess(temporaries(jc.lift(apply)), 0.45 * weights)
    self.assertGreater(
      temporaries(lambda p, x: apply(jc.materialize(p), x)), 1.5 * weights
    )


class AdaptersTest(parameterized.TestCase):
  def test_shapes_and_start(self):
    uses = {
      'q': (uses_lib.Use('dot_general', (-3,), (-4,), ''),),
      'bias': (),
    }
    params = {'q': jnp.ones((5, 6, 2, 4), jnp.bfloat16), 'bias': jnp.ones(3)}
    rules = [('q', 3), ('.*', None)]
    got = jc.adapters.add_lora(params, rules, uses, key=jax.random.key(0))
    self.assertEqual(list(got), ['q'])
    a, b = got['q']['a'], got['q']['b']
    self.assertEqual((a.shape, b.shape), ((5, 6, 3), (5, 3, 8)))
    self.assertEqual((a.dtype, b.dtype), (jnp.bfloat16,) * 2)
    self.assertEqual(float(jnp.abs(b).max()), 0)
    # 90 draws of variance 1 / 6.
    self.assertBetween(float(a.astype(float).std()) * 6**0.5, 0.75, 1.25)

  @parameterized.named_parameters(
    ('alpha over rank', {}, 16 / 4),
    ('alpha', dict(alpha=8.0), 8 / 4),
    ('stabilized', dict(rank_stabilized=True), 16 / 2),
  )
  def test_scale(self, options, want):
    params = {'w': jnp.zeros((6, 5))}
    factors = jc.adapters.add_lora(
      params, [('w', 4)], key=jax.random.key(0), uses=in_out.IN_OUT
    )
    factors['w']['b'] = jnp.ones((4, 5))
    uses = in_out.IN_OUT
    [leaf] = jc.adapters.with_lora(params, factors, uses, **options).values()
    ones = np.asarray(factors['w']['a']) @ np.ones((4, 5))
    np.testing.assert_allclose(leaf.materialize(), want * ones, rtol=1e-5)

  def test_describes_itself(self):
    leaf, _ = adapting.leaf((8, 6), (-2,))
    self.assertEqual(leaf.describe(), 'nf4 g4 dq + rank 2')
    self.assertEqual(
      adapting.leaf((8, 6), (-2,), base=None)[0].describe(), 'float32 + rank 2'
    )

  def test_bytes(self):
    leaf, _ = adapting.leaf((8, 6), (-2,), base=jc.W8A16, rank=2)
    self.assertEqual(jc.nbytes(leaf), 48 + 4 * 6 + 4 * 2 * (8 + 6))

  @parameterized.named_parameters(
    ('too high', [('w', 7)], r'w is 8 x 6.*from 1 to 6'),
    ('no rank', [('w', 0)], r'from 1 to 6'),
    ('a word', [('w', 'r8')], r'an int from 1 to 6'),
    ('no such path', [('v', 2), ('.*', None)], r"'v' matches no path"),
    ('not covered', [], r'No rule covers w'),
  )
  def test_mistakes(self, rules, message):
    params = {'w': jnp.ones((8, 6))}
    with self.assertRaisesRegex(ValueError, message):
      jc.adapters.add_lora(
        params, rules, key=jax.random.key(0), uses=in_out.IN_OUT
      )

  def test_other_parameters(self):
    params = {'w': jnp.ones((8, 6))}
    adapters = jc.adapters.add_lora(
      params, [('w', 2)], key=jax.random.key(0), uses=in_out.IN_OUT
    )
    with self.assertRaisesRegex(ValueError, 'Adapters for w, which is no leaf'):
      jc.adapters.with_lora({'v': params['w']}, adapters, uses=in_out.IN_OUT)
    with self.assertRaisesRegex(ValueError, r'\(4, 2\).*are expected'):
      jc.adapters.with_lora(
        {'w': jnp.ones((4, 6))}, adapters, uses=in_out.IN_OUT
      )


if __name__ == '__main__':
  absltest.main()
