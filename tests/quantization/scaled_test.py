"""The block-scaled products of NVIDIA GPUs: lowered there, emulated here."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc

_RNG = np.random.default_rng(0)
_E5M2 = jc.schemes.Spec('e5m2', 'group', 32, scale='e8m0')
_TARGET = '__op$block_scaled_dot'


def _leaf(scheme, equation, w, x):
  f = lambda p, x: jnp.einsum(equation, x, p['w'])
  uses = jc.uses(f)({'w': w}, x)
  return jc.quantize({'w': w}, [('w', scheme)], uses)['w']


def _lowered(equation, leaf, x, platform):
  f = jax.jit(jc.lift(lambda w, x: jnp.einsum(equation, x, w)))
  return f.trace(leaf, x).lower(lowering_platforms=(platform,)).as_text()


class ScaledTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('mxfp8', jc.schemes.MXFP8, 'bi,io->bo', (64, 48), (8, 64), True),
    (
      'mxfp8_e5m2',
      jc.Scheme(_E5M2, act=_E5M2),
      'bi,io->bo',
      (64, 48),
      (8, 64),
      True,
    ),
    ('nvfp4', jc.NVFP4, 'bi,io->bo', (64, 48), (8, 64), False),
    (
      'experts',
      jc.schemes.MXFP8,
      'ebi,eio->ebo',
      (2, 64, 48),
      (2, 8, 64),
      True,
    ),
    ('orders', jc.schemes.MXFP8, 'ib,oi->ob', (48, 64), (64, 8), True),
    (
      'mxfp4_has_no_native',
      jc.schemes.MXFP4,
      'bi,io->bo',
      (64, 48),
      (8, 64),
      False,
    ),
    ('ragged', jc.schemes.MXFP8, 'bi,io->bo', (60, 48), (8, 60), False),
    ('integers', jc.W8A8, 'bi,io->bo', (64, 48), (8, 64), False),
  )
  def test_where_it_lowers(self, scheme, equation, w_shape, x_shape, native):
    w = _RNG.normal(size=w_shape).astype(np.float32)
    x = jnp.asarray(_RNG.normal(size=x_shape).astype(np.float32))
    leaf = _leaf(scheme, equation, jnp.asarray(w), x)
    self.assertEqual(native, _TARGET in _lowered(equation, leaf, x, 'cuda'))
    self.assertNotIn(_TARGET, _lowered(equation, leaf, x, 'cpu'))
    # The definition, which other backends compute.
    y = jax.jit(jc.lift(lambda w, x: jnp.einsum(equation, x, w)))(leaf, x)
    want = np.einsum(equation, x, np.asarray(leaf.materialize()))
    error = np.abs(y - want).max() / np.abs(want).max()
    self.assertLess(error, 0.2)
    self.assertGreater(error, 1e-5)  # activations are rounded


if __name__ == '__main__':
  absltest.main()
