"""The clock: composition, routing by path, and what is learned beside."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import statistics
from jaxopt_compress.core import array
from jaxopt_compress.core import compression
from jaxopt_compress.core import rules as rules_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Scaled(array.CompressedArray):
  """Stands for value * factor; frozen to an array."""

  value: jax.Array
  factor: jax.Array
  shape = property(lambda self: self.value.shape)
  dtype = property(lambda self: self.value.dtype)

  def materialize(self):
    return array.materialize(self.value) * self.factor

  def freeze(self):
    return self.materialize()


def scaled(factor):
  """Multiplies all leaves; counts its updates and sums the gradients seen."""

  def update(state, params, info):
    seen = jax.tree.map(lambda p: p.sum(), params)
    return {'count': state['count'] + 1, 'seen': seen, 'grads': info.grads}

  return compression.Compression(
    init=lambda params: {'count': 0, 'seen': None, 'grads': None},
    apply=lambda params, state: rules_lib.map_named(
      lambda _, x: Scaled(x, jnp.float32(factor)), params
    ),
    update=update,
  )


def _round_to(step, w):
  """round(w / step) * step; d/dw = 1, d/dstep = the codes."""
  codes = jax.lax.stop_gradient(jnp.round(w / step))
  return codes * step + (w - jax.lax.stop_gradient(w))


def learned_step(initial):
  """A step size for each leaf, learned beside the weights."""

  def init(params):
    one = lambda _, x: compression.Learned(jnp.full((), initial, x.dtype))
    return {'step': rules_lib.map_named(one, params), 'count': jnp.int32(0)}

  def apply(params, state):
    return rules_lib.map_named(
      lambda _, w, s: _round_to(s.value, w), params, state['step']
    )

  update = lambda state, params, info: {**state, 'count': state['count'] + 1}
  return compression.Compression(init, apply, update)


PARAMS = {'a': {'w': jnp.ones(2), 'b': jnp.ones(3)}, 'c': jnp.ones(4)}
INFO = compression.Info(step=0)


class CompressionTest(parameterized.TestCase):
  def test_identity(self):
    comp = compression.chain()
    state = comp.init(PARAMS)
    self.assertIs(comp.apply(PARAMS, state), PARAMS)
    self.assertEqual(comp.update(state, PARAMS, INFO), state)

  def test_chain_nests_in_order_and_updates_from_plain_parameters(self):
    comp = compression.chain(scaled(2), scaled(3))
    params = {'w': jnp.arange(3.0)}
    state = comp.init(params)
    leaf = comp.apply(params, state)['w']
    self.assertEqual((leaf.factor, leaf.value.factor), (3, 2))
    np.testing.assert_array_equal(leaf.materialize(), [0, 6, 12])
    state = comp.update(state, params, INFO)
    self.assertEqual([s['seen']['w'] for s in state], [3, 3])

  def test_chain_of_nothing(self):
    comp = compression.chain()
    self.assertIs(comp.apply(PARAMS, comp.init(PARAMS)), PARAMS)

  def test_freeze(self):
    tree = {'w': Scaled(jnp.ones(2), jnp.float32(3)), 'b': jnp.ones(1)}
    frozen = compression.freeze(tree)
    np.testing.assert_array_equal(frozen['w'], [3, 3])
    self.assertIs(frozen['b'], tree['b'])


class ByPathTest(parameterized.TestCase):
  def _comp(self):
    return compression.by_path(
      [(r'a/b', None), (r'a/.*', scaled(2)), (r'c', scaled(5)), (r'.*', None)]
    )

  def test_each_leaf_goes_to_its_own(self):
    comp = self._comp()
    out = array.materialize(comp.apply(PARAMS, comp.init(PARAMS)))
    np.testing.assert_array_equal(out['a']['w'], [2, 2])
    np.testing.assert_array_equal(out['a']['b'], [1, 1, 1])
    np.testing.assert_array_equal(out['c'], [5] * 4)

  @parameterized.parameters(True, False)
  def test_update_sees_its_share(self, with_grads):
    comp = self._comp()
    grads = jax.tree.map(lambda x: 2 * x, PARAMS) if with_grads else None
    info = compression.Info(step=1, grads=grads)
    state = comp.update(comp.init(PARAMS), PARAMS, info)
    self.assertEqual([s['count'] for s in state.values()], [1, 1])
    seen = [list(s['seen']) for s in state.values()]
    self.assertEqual(seen, [['a/w'], ['c']])
    got = [s['grads'] and list(s['grads']) for s in state.values()]
    self.assertEqual(got, [['a/w'], ['c']] if with_grads else [None, None])

  def test_inner_rules_match_the_same_paths(self):
    inner = compression.by_path([(r'a/w', scaled(7)), (r'.*', None)])
    comp = compression.by_path([(r'a/.*', inner), (r'.*', None)])
    out = array.materialize(comp.apply(PARAMS, comp.init(PARAMS)))
    np.testing.assert_array_equal(out['a']['w'], [7, 7])
    np.testing.assert_array_equal(out['a']['b'], [1, 1, 1])

  def test_in_a_chain_after_leaves_are_compressed(self):
    comp = compression.chain(scaled(2), self._comp())
    out = array.materialize(comp.apply(PARAMS, comp.init(PARAMS)))
    np.testing.assert_array_equal(out['c'], [10] * 4)

  def test_rules_are_checked(self):
    comp = compression.by_path([(r'd', scaled(2)), (r'.*', None)])
    with self.assertRaisesRegex(ValueError, "'d' matches no path"):
      comp.init(PARAMS)


class LearnedTest(parameterized.TestCase):
  def test_split_and_merge_are_inverse(self):
    state = {
      'x': compression.Learned({'s': jnp.ones(2), 't': jnp.zeros(1)}),
      'mask': jnp.ones(3, bool),
      'y': (compression.Learned(jnp.ones(4)), None, 3),
    }
    learned, rest = compression.split_learned(state)
    self.assertEqual(list(learned), ['x', 'y/0'])
    self.assertLen(jax.tree.leaves(rest), 2)
    merged = compression.merge_learned(learned, rest)
    self.assertEqual(jax.tree.structure(merged), jax.tree.structure(state))
    same = jax.tree.map(lambda a, b: a is b, merged, state)
    self.assertTrue(all(jax.tree.leaves(same)))

  def test_nothing_learned(self):
    state = {'mask': jnp.ones(3)}
    learned, rest = compression.split_learned(state)
    self.assertEqual(learned, {})
    self.assertIs(
      compression.merge_learned(learned, rest)['mask'], rest['mask']
    )

  def test_what_is_learned_gets_gradients(self):
    w = np.array([0.26, -0.9, 1.4, 0.1], np.float32)
    params, comp = {'w': jnp.asarray(w)}, learned_step(0.5)
    learned, rest = compression.split_learned(comp.init(params))

    def total(params, learned):
      state = compression.merge_learned(learned, rest)
      return comp.apply(params, state)['w'].sum()

    d_params, d_learned = jax.grad(total, (0, 1))(params, learned)
    np.testing.assert_array_equal(d_params['w'], np.ones(4))
    want = np.round(w / 0.5).sum()
    np.testing.assert_allclose(d_learned['step/w'], want, rtol=1e-5)

  def test_step_sizes_train_end_to_end_in_one_program(self):
    # Multiples of 1 make {-3, -1, 1, 3} exact: a step of 0.9 must grow to 1.
    params = {'w': jnp.array([-3.0, -1.0, 1.0, 3.0])}
    comp, traces = learned_step(0.9), []

    def loss(learned, rest, params):
      state = compression.merge_learned(learned, rest)
      return jnp.square(comp.apply(params, state)['w'] - params['w']).mean()

    @jax.jit
    def step(params, state):
      traces.append(1)
      learned, rest = compression.split_learned(state)
      value, grads = jax.value_and_grad(loss)(learned, rest, params)
      learned = jax.tree.map(lambda s, g: s - 0.02 * g, learned, grads)
      state = compression.merge_learned(learned, rest)
      return comp.update(state, params, compression.Info(0, None)), value

    state = comp.init(params)
    losses = []
    for _ in range(40):
      state, value = step(params, state)
      losses.append(float(value))
    self.assertLen(traces, 1)
    self.assertEqual(state['count'], 40)
    self.assertLess(losses[-1], 1e-3 * losses[0])
    np.testing.assert_allclose(state['step']['w'].value, 1, atol=1e-3)

  def test_abstract_init(self):
    comp = compression.by_path([(r'c', learned_step(0.5)), (r'.*', None)])
    real = comp.init(PARAMS)
    state = jax.eval_shape(comp.init, PARAMS)
    self.assertEqual(jax.tree.structure(state), jax.tree.structure(real))
    learned, _ = compression.split_learned(state)
    self.assertEqual(list(learned), ['0/step/c'])
    out = jax.eval_shape(comp.apply, PARAMS, state)
    self.assertEqual(out['c'].shape, (4,))


class ObservesTest(parameterized.TestCase):
  """What updates want to be told, of whom."""

  def _wants(self, *names):
    wanted = {name: statistics.absmax() for name in names}
    return compression.chain()._replace(
      observes=lambda params: {k: v for k, v in wanted.items() if k in params}
    )

  def test_of_one_of_many(self):
    self.assertEqual(compression.chain().observes(PARAMS), {})
    chained = compression.chain(compression.chain(), self._wants('c'))
    self.assertEqual(list(chained.observes(PARAMS)), ['c'])
    # Each is asked about its own leaves.
    parts = compression.by_path(
      [('c', self._wants('c', 'a/b')), ('a/.*', self._wants('c', 'a/b'))]
    )
    self.assertCountEqual(parts.observes(PARAMS), ['a/b', 'c'])

  def test_a_leaf_is_observed_once(self):
    twice = compression.chain(self._wants('c'), self._wants('c'))
    with self.assertRaisesRegex(ValueError, 'statistics of c'):
      twice.observes(PARAMS)


if __name__ == '__main__':
  absltest.main()
