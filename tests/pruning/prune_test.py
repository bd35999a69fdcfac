"""Pruning at once."""

from absl.testing import absltest
from absl.testing import parameterized
import in_out
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.analysis import uses as uses_lib
from jaxopt_compress.core import array
from jaxopt_compress.core import lift
from jaxopt_compress.pruning import masking
from jaxopt_compress.pruning import prune
from jaxopt_compress.pruning.storage import sparsify

Sparsity = masking.Sparsity


def mlp(params, x):
  x = jnp.tanh(x @ params['up'] + params['bias'])
  return x @ params['down']


def make_params(key=0):
  up, down = jax.random.split(jax.random.key(key))
  return {
    'bias': jnp.zeros((1, 16)),
    'down': jax.random.normal(down, (16, 4)),
    'up': jax.random.normal(up, (8, 16)),
  }


def kernels(spec):
  return [(r'up|down', spec), (r'.*', None)]


class PruneTest(parameterized.TestCase):
  def test_n_m_from_uses_runs_along_what_is_contracted(self):
    params = {'w': jax.random.normal(jax.random.key(0), (8, 16))}
    f = lambda p, x: x @ p['w'].T  # the last axis is the input
    uses = uses_lib.uses(f)(params, jnp.ones((2, 16)))
    spec = Sparsity(kind='n_m', n=2, m=4)
    got = prune.prune(params, [(r'w', spec)], uses)['w'].mask
    np.testing.assert_array_equal(got.reshape(8, 4, 4).sum(-1), 2)
    kernel = {'kernel': params['w']}  # without uses, by its name
    got = prune.prune(kernel, [(r'kernel', spec)])['kernel'].mask
    np.testing.assert_array_equal(got.reshape(2, 4, 16).sum(1), 2)

  def test_neurons_of_a_scanned_stack(self):
    params = {'w': jax.random.normal(jax.random.key(0), (3, 4, 4))}

    def f(p, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['w'])[0]

    uses = uses_lib.uses(f)(params, jnp.ones((2, 4)))
    rules = [(r'w', Sparsity(0.5, kind='neurons'))]
    mask = prune.prune(params, rules, uses)['w'].mask
    np.testing.assert_array_equal(mask.all(-2).sum(-1), [2, 2, 2])
    np.testing.assert_array_equal(mask.any(-2).sum(-1), [2, 2, 2])

  def test_soft_threshold_ranks_by_what_sticks_out(self):
    w = jnp.stack([jnp.ones(4), jnp.array([3.0, 0, 0, 0])], -1)  # [4, 2]
    for score, k, kept in (
      ('magnitude', 0.0, [True, False]),
      ('soft_threshold', 1.0, [False, True]),
    ):
      spec = Sparsity(0.5, kind='neurons', score=score, k=k)
      mask = prune.prune({'w': w}, [(r'w', spec)], in_out.IN_OUT)['w'].mask
      self.assertEqual(mask[0].tolist(), kept)

  @parameterized.parameters('unstructured', 'neurons')
  def test_what_is_below_k_is_ranked_by_magnitude(self, kind):
    w = jnp.array([[1.0, 3.0, 2.0, 4.0]])
    for k, dtype in ((10.0, 'float32'), (10.0, 'float16'), (3.5, 'bfloat16')):
      spec = Sparsity(0.5, kind=kind, score='soft_threshold', k=k)
      got = prune.prune({'w': w.astype(dtype)}, [(r'w', spec)], in_out.IN_OUT)
      self.assertEqual(got['w'].mask.tolist(), [[False, True, False, True]])

  def test_leaves_of_zeros_are_told(self):
    with self.assertWarnsRegex(UserWarning, '^w: whether 4 of its 4 weights'):
      prune.prune({'w': jnp.zeros((2, 2))}, [(r'w', Sparsity(0.5))])

  def test_a_column_is_no_stack(self):
    params = {'w': jnp.arange(1.0, 7.0).reshape(6, 1)}
    f = lambda p, x: x + p['w']
    uses = uses_lib.uses(f)(params, jnp.ones((6, 1)))
    got = prune.prune(params, [(r'w', Sparsity(0.5))], uses)['w']
    self.assertEqual(got.mask.ravel().tolist(), [False] * 3 + [True] * 3)

  def test_scales_of_a_scan_are_a_stack(self):
    params = {'w': jnp.outer(jnp.array([1e-3, 1.0]), jnp.arange(1.0, 21.0))}
    f = lambda p, x: jax.lax.scan(lambda x, w: (x * w, None), x, p['w'])[0]
    uses = uses_lib.uses(f)(params, jnp.ones(20))
    got = prune.prune(params, [(r'w', Sparsity(0.5))], uses)['w']
    self.assertEqual(got.mask.sum(1).tolist(), [1, 19])

  def test_biases_can_be_pruned_weight_by_weight(self):
    params, x = make_params(), jnp.ones((2, 8))
    params['bias'] = jnp.arange(16.0).reshape(1, 16)
    uses = uses_lib.uses(mlp)(params, x)
    rules = [(r'.*', Sparsity(0.5))]
    got = prune.prune(params, rules, uses)
    self.assertEqual(got['bias'].mask.sum(), 8)

  def test_uses_of_another_tree_are_refused(self):
    uses = uses_lib.uses(mlp)(make_params(), jnp.ones((2, 8)))
    for spec in (Sparsity(0.5), Sparsity(kind='n_m', n=2, m=4)):
      with self.assertRaisesRegex(ValueError, 'uses has no entry for w'):
        prune.prune({'w': jnp.ones((4, 4))}, [(r'w', spec)], uses)

  def test_what_is_compressed_already_is_ranked_by_its_meaning(self):
    params = {'w': jnp.array([3.0, 1.0, 2.0, 4.0])}
    once = prune.prune(params, [(r'w', Sparsity(0.25))])
    twice = prune.prune(once, [(r'w', Sparsity(0.5))])
    np.testing.assert_array_equal(
      array.materialize(twice)['w'], [3.0, 0.0, 0.0, 4.0]
    )

  @parameterized.named_parameters(
    ('uncovered', [(r'up', Sparsity(0.5))], 'No rule covers'),
    ('no words', [(r'.*', 'half')], r"The rule '\.\*': 'half' is no sparsity"),
    ('a typo', kernels(Sparsity(0.5))[:1] + [(r'bais', None)], 'bias'),
    ('ragged', kernels(Sparsity(kind='n_m', n=2, m=5)), '^down: 2:5.*axis -2'),
    ('rank', [(r'.*', Sparsity(0.5, kind='neurons'))], 'integers is int32'),
  )
  def test_errors(self, rules, message):
    params = make_params()
    if 'integers' in message:
      params = {'integers': jnp.ones((2, 2), jnp.int32)}
    with self.assertRaisesRegex(ValueError, message):
      prune.prune(params, rules, in_out.IN_OUT)

  def test_shares_and_rows_need_axes(self):
    params = {'w': jnp.ones((2, 4, 4)), 'v/kernel': jnp.ones((4, 4))}
    for options in (dict(allocation='erk'), dict(scope='row')):
      rules = [('.*', Sparsity(0.5, **options))]
      with self.assertRaisesRegex(ValueError, 'Which axes of w.*Pass uses'):
        prune.prune(params, rules)
    # Without uses, what is called kernel is clear: a matrix and a window.
    params = {
      'conv/kernel': jax.random.uniform(jax.random.key(0), (3, 3, 4, 4)),
      'v/kernel': jax.random.uniform(jax.random.key(1), (8, 3)),
    }
    got = prune.prune(params, [('.*', Sparsity(0.6, allocation='erk'))])
    kept = {p: float(x.mask.mean()) for p, x in got.items()}
    self.assertGreater(kept['v/kernel'], kept['conv/kernel'])

  @parameterized.parameters(
    dict(spec=Sparsity(0.9)), dict(spec=Sparsity(kind='n_m', n=1, m=4))
  )
  def test_weights_without_their_zeros_are_pruned_again_as_arrays(self, spec):
    rules = [('.*', spec)]
    w = jax.random.normal(jax.random.key(0), (64, 32))
    uses = in_out.IN_OUT
    once = sparsify.sparsify(prune.prune({'w': w}, rules, uses))[0]
    with self.assertRaisesRegex(
      ValueError, r'^w is .* already; .* Prune jc.materialize\(params\)'
    ):
      prune.prune(once, rules, uses)
    again = prune.prune(lift.materialize(once), rules, uses)['w']
    np.testing.assert_array_equal(again.mask, once['w'].materialize() != 0)

  def test_words_are_sparsities(self):
    params, x = make_params(), jnp.ones((2, 8))
    uses = uses_lib.uses(mlp)(params, x)
    for word, spec in (
      (0.8, Sparsity(0.8)),
      ('2:4', Sparsity(kind='n_m', n=2, m=4)),
      ('neurons 0.5', Sparsity(0.5, kind='neurons')),
      (
        'block 2x2 0.5 global',
        Sparsity(0.5, kind='block', block=(2, 2), scope='global'),
      ),
    ):
      got = prune.prune(params, kernels(word), uses)
      want = prune.prune(params, kernels(spec), uses)
      for path in ('up', 'down'):
        np.testing.assert_array_equal(got[path].mask, want[path].mask)
    self.assertEqual(
      float(prune.prune(params, kernels('2:4'), uses)['up'].mask.mean()), 0.5
    )

  def test_as_it_was_called_in_the_release_before(self):
    params = {'w': jnp.array([1.0, 3.0, 2.0, 4.0])}
    for rules in ([('w', 0.5)], ((r'w', Sparsity(0.5)),)):
      with self.assertWarnsRegex(DeprecationWarning, r'jc\.methods\.gradual\('):
        comp = prune.prune(rules)
      masks = comp.init(params).masks
      self.assertEqual(masks['w'].tolist(), [False, True, False, True])
    with self.assertWarns(DeprecationWarning):
      comp = prune.prune([('w', '0.5 random')], key=jax.random.key(0))
    self.assertEqual(int(comp.init(params).masks['w'].sum()), 2)

  def test_rules_in_place_of_parameters_are_no_silent_success(self):
    with self.assertRaisesRegex(ValueError, 'No rule covers w'):
      prune.prune({'w': jnp.ones(4)})
    # A list of arrays is a tree.
    got = prune.prune([jnp.array([1.0, 2.0])], [('0', 0.5)])
    self.assertEqual(got[0].mask.tolist(), [False, True])


if __name__ == '__main__':
  absltest.main()
