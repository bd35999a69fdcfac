from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.pruning import scores

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
    (
      'soft threshold',
      lambda w: scores.soft_threshold(w, 1.0),
      (),
      [2 / 4, 1 / 4, 0],
    ),
    ('taylor', scores.taylor, (_G,), [11 / 4, 5 / 4, 0.25 / 4]),
    # 3 + 1 - 1, -1 + 2, -0.5: within a channel gains and losses cancel
    ('first order', scores.first_order, (_G,), [3 / 4, 1 / 4, 0.5 / 4]),
  )
  def test_values(self, score, others, want):
    found = jc.importance(FOUND, _P, *others, score=score, normalize='none')
    np.testing.assert_allclose(found['a:-1'], want, rtol=1e-6)

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
    made = jc.importance(
      found, {'w': w}, score=[('w', scores.magnitude)], normalize='none'
    )
    by_size = {v.size: v.tolist() for v in made.values()}
    self.assertEqual(by_size, {2: [4, 7], 3: [4.5, 5.5, 6.5]})

  def test_of_codes(self):
    q = jc.quantize(_P, [('b', 'int8'), ('.*', None)])
    got = jc.importance(FOUND, q)['a:-1']
    want = jc.importance(FOUND, jc.materialize(q))['a:-1']
    self.assertEqual(got.tolist(), want.tolist())

  @parameterized.named_parameters(
    ('nan', dict(_P, a=_P['a'] * jnp.nan), {}, 'a: 6 of 6 scores are NaN'),
    ('other', {'a': _P['a']}, {}, "'b', 'bias'"),
    ('shape', _P, dict(score=jnp.sum), r'shape \(\)'),
    ('none', _P, dict(score=[('.*', None)]), 'None of .*a:-1'),
    ('normal', _P, dict(normalize='mena'), "Did you mean 'mean'"),
  )
  def test_refused(self, params, options, message):
    with self.assertRaisesRegex(ValueError, message):
      jc.importance(FOUND, params, **options)


if __name__ == '__main__':
  absltest.main()
