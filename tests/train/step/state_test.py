"""What a run is at one step."""

from absl.testing import parameterized
import jax
import jax.numpy as jnp
import optax

from jaxopt_compress.core import compression as compression_lib
from jaxopt_compress.train.step import state as state_lib


def _gained():
  """w is multiplied by a learned gain."""
  return compression_lib.Compression(
    init=lambda params: {'gain': compression_lib.Learned(jnp.float32(2.0))},
    apply=lambda params, state: {'w': params['w'] * state['gain'].value},
    update=lambda state, params, info: state,
  )


class StateTest(parameterized.TestCase):
  def test_create_is_abstract(self):
    state = jax.eval_shape(
      lambda: state_lib.create(
        {'w': jnp.ones((4, 3))},
        {},
        jax.random.key(0),
        optax.adam(1e-3),
        compression=_gained(),
      )
    )
    self.assertEqual(state.opt_state[0].mu['w'].shape, (4, 3))
    self.assertEqual(list(state.learned), ['gain'])

  def test_compressed_is_what_the_forward_pass_sees(self):
    state = state_lib.create(
      {'w': jnp.ones((4, 3))},
      {},
      jax.random.key(0),
      optax.sgd(1.0),
      compression=_gained(),
      follow=True,
    )
    self.assertEqual(
      float(state_lib.compressed(state, _gained())['w'][0, 0]), 2
    )
    self.assertEqual(float(state.average[0]['w'][0, 0]), 2)
