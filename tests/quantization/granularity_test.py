"""What tables say of how scales are shared."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.quantization import granularity


class GranularityTest(parameterized.TestCase):
  @parameterized.parameters(
    ('int8', (8, 4), 'channel'),
    ('int8 tensor', (8, 4), 'tensor'),
    ('int4 g4 asym', (8, 4), 'g4 asym'),
    ('nf4 g4 dq', (8, 4), 'g4 dq'),
    ('e2m1 g4 nv', (8, 4), 'g4 nv'),
    ('int8', (3, 3, 2, 4), 'channel'),
  )
  def test_words(self, scheme, shape, want):
    w = jnp.linspace(-1, 1, jnp.ones(shape).size).reshape(shape)
    q = jc.quantize({'kernel': w}, [('kernel', scheme)])['kernel']
    self.assertEqual(granularity.words(q), want)
    self.assertStartsWith(q.describe(), f'{scheme.split()[0]} {want}')


if __name__ == '__main__':
  absltest.main()
