from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning import scores
from jaxopt_compress.pruning.structured import importance

#  x -> a [2, 3] + bias -> b [3, 2]:   channel c is a column of a and a row of b
_P = {
  'a': jnp.array([[3.0, -1.0, 0.0], [0.0, 0.0, 0.0]]),
  'b': jnp.array([[1.0, -1.0], [2.0, 0.0], [0.5, 0.0]]),
  'bias': jnp.array([[100.0, 0.0, 0.0]]),
}
_G = {
  'a': jnp.ones((2, 3)),
  'b': jnp.array([[1.0, 1.0], [1.0, 9.0], [-1.0, 9.0]]),
  'bias': jnp.array([[1.0, 1.0, 1.0]]),
}


def fun(p, x):
  return jax.nn.relu(x @ p['a'] + p['bias']) @ p['b']


FOUND = jc.structure(fun)(_P, jnp.ones((1, 2)))


class ImportanceTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('magnitude', scores.magnitude, (), [5 / 4, 3 / 4, 0.5 / 4]),
    ('by name', 'magnitude', (), [5 / 4, 3 / 4, 0.5 / 4]),
    (
      'soft threshold',
      lambda w: scores.soft_threshold(w, 1.0),
      (),
      [2 / 4, 1 / 4, 0],
    ),
    ('taylor', 'taylor', (_G,), [11 / 4, 5 / 4, 0.25 / 4]),
    # |3|, |1 - 1|; |-1|, |2|; 0, |-0.5|: gains and losses cancel within a leaf
    ('first order', 'first_order', (_G,), [3 / 4, 3 / 4, 0.5 / 4]),
  )
  def test_values(self, score, others, want):
    found = jc.importance(
      FOUND, _P, *others, score=score, balanced=False, normalize='none'
    )
    np.testing.assert_allclose(found['a:-1'], want, rtol=1e-6)

  @parameterized.product(
    entries=['mean', 'sum'],
    members=['mean', 'sum', 'max', 'first', np.prod],
    balanced=[False, True],
    normalize=['none', 'mean', 'gaussian'],
  )
  def test_put_together(self, entries, members, balanced, normalize):
    of_entries = dict(mean=np.mean, sum=np.sum)[entries]
    a = of_entries(np.abs(_P['a']).astype(float), 0)
    b = of_entries(np.abs(_P['b']).astype(float), 1)
    if balanced:
      a, b = a / a.mean(), b / b.mean()
    take_first = lambda x, axis: x[0]
    name = members if isinstance(members, str) else 'prod'
    want = (take_first if name == 'first' else getattr(np, name))(
      [a, b], axis=0
    )
    want = {
      'none': want,
      'mean': want / want.mean(),
      'gaussian': (want - want.mean()) / want.std(ddof=1),
    }[normalize]
    if members is np.prod:
      members = lambda x: np.prod(x, 0)
    found = jc.importance(
      FOUND,
      _P,
      entries=entries,
      members=members,
      balanced=balanced,
      normalize=normalize,
    )
    np.testing.assert_allclose(found['a:-1'], want, rtol=1e-6)

  def test_as_torch_pruning(self):
    # GroupMagnitudeImportance(p=2) of a convolution, its batch norm and what reads it:
    # sums of squares, the mean of the three, over the mean of the channels.
    rng = np.random.default_rng(0)
    p = {
      'conv': rng.standard_normal((3, 3, 2, 4), np.float32),
      'gain': rng.standard_normal((1, 1, 1, 4), np.float32),
      'next': rng.standard_normal((1, 1, 4, 5), np.float32),
    }
    conv = lambda x, w: jax.lax.conv_general_dilated(
      x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    f = lambda p, x: conv(
      jax.nn.relu(conv(x, p['conv']) * p['gain']), p['next']
    )
    found = jc.structure(f)(p, jnp.ones((1, 5, 5, 2)))
    got = jc.importance(
      found, p, score=[('.*', jnp.square)], entries='sum', balanced=False
    )
    squares = {k: np.square(x.astype(float)) for k, x in p.items()}
    want = (
      squares['conv'].sum((0, 1, 2))
      + squares['gain'].sum((0, 1, 2))
      + squares['next'].sum((0, 1, 3))
    )
    np.testing.assert_allclose(got['conv:-1'], want / want.mean(), rtol=1e-5)

  def test_a_leaf_of_zeros_has_no_vote(self):
    found = jc.importance(FOUND, dict(_P, a=0 * _P['a']), normalize='max')
    self.assertEqual(found['a:-1'].tolist(), [1, 1, 0.25])

  def test_sixteen_bits_do_not_underflow(self):
    small = jax.tree.map(lambda x: (x * 1e-3).astype(jnp.float16), (_P, _G))
    found = jc.importance(FOUND, *small, score='taylor', balanced=False)
    np.testing.assert_allclose(
      found['a:-1'],
      jc.importance(FOUND, _P, _G, score='taylor', balanced=False)['a:-1'],
      rtol=1e-2,
    )

  def test_which_are_weights(self):
    #  heads with biases [heads, 3], scanned layers with biases and gains [4, 6]
    p = {
      'q': {'kernel': jnp.ones((5, 2, 3)), 'bias': jnp.ones((2, 3))},
      'layers': {'kernel': jnp.ones((4, 6, 6)), 'scale': jnp.ones((4, 1, 6))},
    }

    def f(p, x):
      x = jnp.einsum('td,dhk->thk', x, p['q']['kernel']) + p['q']['bias'][None]
      layer = lambda x, p: (x @ p['kernel'] * p['scale'], None)
      return jax.lax.scan(layer, x.reshape(-1, 6), p['layers'])[0]

    found = jc.structure(f)(p, jnp.ones((1, 5)))
    self.assertEqual(importance.kernels(found), {'layers/kernel', 'q/kernel'})

  def test_rules_say_which_leaves(self):
    rules = [('bias', scores.magnitude), ('.*', None)]
    found = jc.importance(FOUND, _P, score=rules, normalize='max')
    self.assertEqual(found['a:-1'].tolist(), [1, 0, 0])

  def test_heads_and_sums(self):
    #  q and k side by side, two heads of three: what there is of a head, in both
    def fused(p, x):
      q, k = (y.reshape(1, 2, 3) for y in jnp.split(x @ p['w'], 2, -1))
      return jnp.einsum('thd,shd->hts', q, k).sum(0)

    w = jnp.arange(12.0).reshape(1, 12)
    found = jc.structure(fused)({'w': w}, jnp.ones((1, 1)))
    options = dict(balanced=False, normalize='none')
    options['score'] = [('w', scores.magnitude)]
    made = jc.importance(found, {'w': w}, within='', **options)
    by_size = {v.size: v.tolist() for v in made.values()}
    self.assertEqual(by_size, {2: [4, 7], 3: [4.5, 5.5, 6.5]})
    # Each head by itself.
    made = jc.importance(found, {'w': w}, **options)
    by_size = {v.size: v.tolist() for v in made.values()}
    self.assertEqual(by_size, {2: [4, 7], 6: [[3, 4, 5], [6, 7, 8]]})

  def test_within(self):
    #  two key heads with three queries each: each key keeps its own best
    def grouped(p, x):
      return jnp.einsum('kr,kr->k', p['q'], p['o']) @ p['k'] * x

    p = {
      'q': jnp.array([[1.0, 2.0, 3.0], [6.0, 5.0, 4.0]]),
      'o': jnp.ones((2, 3)),
      'k': jnp.ones((2, 2)),
    }
    found = jc.structure(grouped)(p, jnp.ones(()))
    options = dict(normalize='none', balanced=False)
    made = jc.importance(found, p, **options)
    self.assertEqual(made['k:-2'].shape, (2,))
    self.assertEqual(made['o:-1'].tolist(), [[1, 1.5, 2], [3.5, 3, 2.5]])
    plan = jc.select(found, made, keep=0.7, by=[('o.*', 'keep'), ('.*', None)])
    self.assertEqual(jc.shrink(plan, p)['q'].tolist(), [[2, 3], [6, 5]])
    alike = jc.importance(found, p, within='', **options)
    self.assertEqual(alike['o:-1'].tolist(), [2.25, 2.25, 2.25])

  def test_of_codes(self):
    q = jc.quantize(_P, [('b', 'int8'), ('.*', None)], uses=in_out.IN_OUT)
    got = jc.importance(FOUND, q)['a:-1']
    want = jc.importance(FOUND, jc.materialize(q))['a:-1']
    self.assertEqual(got.tolist(), want.tolist())

  @parameterized.named_parameters(
    ('nan', dict(_P, a=_P['a'] * jnp.nan), {}, 'a: 6 of 6 scores are NaN'),
    ('other', {'a': _P['a']}, {}, "'b', 'bias'"),
    ('shape', _P, dict(score=jnp.sum), r'shape \(\)'),
    ('none', _P, dict(score=[('.*', None)]), 'None of .*a:-1'),
    ('normal', _P, dict(normalize='mena'), "Did you mean 'mean'"),
    ('members', _P, dict(members='frist'), "Did you mean 'first'"),
    ('entries', _P, dict(entries='max'), "'mean', 'sum'"),
    ('score', _P, dict(score='magnitud'), "Did you mean 'magnitude'"),
  )
  def test_refused(self, params, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.importance(FOUND, params, **options)

  @parameterized.named_parameters(
    (
      'no gradients',
      (),
      'taylor of 1 arrays: missing .*gradient.*jc.pruning.gradients',
    ),
    ('of another shape', ({**_G, 'b': _G['b'][:1]},), r'b has the shapes'),
  )
  def test_others_that_are_refused(self, others, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.importance(FOUND, _P, *others, score='taylor')

  def test_sizes_are_no_matter_of_jit(self):
    with self.assertRaisesRegex(ValueError, 'a is traced: .* outside'):
      jax.jit(lambda p: jc.importance(FOUND, p))(_P)

  def test_nothing_may_go(self):
    p = {'a': jnp.ones((2, 3))}
    found = jc.structure(lambda p, x: x @ p['a'])(p, jnp.ones((1, 2)))
    with self.assertRaisesRegex(ValueError, 'No group of the structure may go'):
      jc.importance(found, p)

  def test_sharded(self):
    mesh = jax.sharding.Mesh(jax.devices()[:3], ('d',))
    spec = jax.sharding.PartitionSpec
    cut = {'a': spec(None, 'd'), 'b': spec('d'), 'bias': spec()}
    params = {
      k: jax.device_put(x, jax.sharding.NamedSharding(mesh, cut[k]))
      for k, x in _P.items()
    }
    got = jc.importance(FOUND, params)['a:-1']
    np.testing.assert_allclose(got, jc.importance(FOUND, _P)['a:-1'], rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
