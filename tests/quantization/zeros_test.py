"""Pruned, then quantised: zeros stay zeros, or it is said that they do not."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

KEY = jax.random.key(0)
# Columns of both signs, of one sign, and of nothing but zeros.
W = jax.random.normal(KEY, (32, 16))
W = jnp.where(jnp.abs(W) > 1.2, W, 0).at[:, :4].set(jnp.maximum(W[:, :4], 0))
W = W.at[:, 4].set(0)
ZERO = np.asarray(W) == 0
RULES = [('kernel', jc.Sparsity(0.7, end=1))]


class ZerosTest(parameterized.TestCase):
  @parameterized.parameters(
    'int8 asym',
    'int4 g8 asym',
    'int3 asym mse',
    'int4 g8 asym hqq',
    'int4 asym stochastic',
    'ternary',
    'e4m3',
    'e2m1 g8 nv',
    'e2m3 g16 mx',
    'nf4 g8 dq',
  )
  def test_stay(self, scheme):
    self.assertTrue(jc.quantization.schemes.scheme(scheme).weight.keeps_zeros)
    q = jc.quantize({'kernel': W}, [('kernel', scheme)], key=KEY)['kernel']
    self.assertTrue((np.asarray(q.materialize())[ZERO] == 0).all())

  @parameterized.parameters(
    'int2 asym', 'ternary asym', 'binary', 'e4m3 asym', 'nf4 g8 asym', 'W2A16'
  )
  def test_are_lost_and_it_is_said(self, scheme):
    with self.assertWarnsRegex(
      UserWarning, 'kernel is pruned.*no code for zero'
    ):
      q = jc.quantize({'kernel': W}, [('kernel', scheme)])['kernel']
    self.assertTrue((np.asarray(q.materialize())[ZERO] != 0).any())

  def test_under_masks_while_training(self):
    params = {'kernel': W}
    prune = jc.methods.gradual(RULES)
    for scheme, lost in (('int8 asym', False), ('int2 asym', True)):
      comp = jc.chain(prune, jc.fake_quantize([('kernel', scheme)]))
      run = lambda p, comp=comp: comp.apply(p, comp.init(p))
      if lost:
        with self.assertWarnsRegex(UserWarning, 'kernel is pruned'):
          jax.eval_shape(run, params)
      else:
        jax.eval_shape(run, params)


if __name__ == '__main__':
  absltest.main()
