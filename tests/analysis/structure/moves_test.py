from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from networks import free_of

# Of p [2, 6, 4]: what is left free of it, in sizes; '~' where that is not exact.
CASES = {
  'transpose': (lambda p: p.transpose(2, 0, 1).sum(), '2 6 4'),
  'reshape': (lambda p: p.reshape(12, 4).sum(), '2 6 4'),
  'split': (lambda p: p.reshape(2, 3, 2, 4).sum(), '2 3*2 4'),
  'reshape that mixes': (lambda p: p.reshape(2, 8, 3).sum(), '2'),
  'squeeze': (lambda p: p[:, None].squeeze(1).sum(), '2 6 4'),
  'slice': (lambda p: p[:, :4].sum() + p[:, 4:].sum(), '2 (4+2) 4'),
  'slice of one': (lambda p: p[1].sum(), '(+) 6 4'),
  'strides': (lambda p: p[:, ::2].sum(), '2 3*(+) 4'),
  'strides that leave some': (lambda p: p[:, 1::4].sum(), '2 4'),
  'reversed': (lambda p: p[:, ::-1].sum(), '2 4'),
  'split in two': (lambda p: jnp.split(p, 2, 1)[0].sum(), '2 (3+3) 4'),
  'halves added': (lambda p: sum(jnp.split(p, 2, 1)).sum(), '2 (3+3) 4'),
  'concatenate': (lambda p: jnp.concatenate([p, p], 1).sum(), '2 6 4'),
  'pad': (lambda p: jnp.pad(p, ((0, 0), (1, 0), (0, 0))).sum(), '2 6 4'),
  'pad between': (lambda p: lax.pad(p, 0.0, [(0, 0, 1)] * 3).sum(), ''),
  'stack': (lambda p: jnp.stack([p, 2 * p]).sum(), '2 6 4'),
  'fourier': (lambda p: jnp.fft.fft(p, axis=1).real.sum(), '2 4'),
  'shifted': (lambda p: jnp.roll(p, 1, 1).sum(), '2 (5+) 4'),
  'shifted and added': (lambda p: (p + jnp.roll(p, 1, 1)).sum(), '2 (+) 4'),
  'repeat': (lambda p: jnp.repeat(p, 3, 1).sum(), '2 6 4'),
  'tile': (lambda p: jnp.tile(p, (1, 3, 1)).sum(), '2 6 4'),
  'dynamic slice': (
    lambda p: lax.dynamic_slice(p, (0, 1, 0), (2, 3, 4)).sum(),
    '2 4',
  ),
  'rows': (lambda p: jnp.take(p, jnp.array([1, 0]), 1).sum(), '2 4'),
  'numbered': (lambda p: (p * jnp.arange(6)[None, :, None]).sum(), '2 4'),
  'dropout': (
    lambda p: (p * jax.random.bernoulli(jax.random.key(0), 0.5, p.shape)).sum(),
    '2~ 6~ 4~',
  ),
}


class StructureMovesTest(parameterized.TestCase):
  @parameterized.parameters(*CASES)
  def test_free(self, name):
    fun, want = CASES[name]
    self.assertEqual(free_of(fun, jnp.ones((2, 6, 4))), want)


if __name__ == '__main__':
  absltest.main()
