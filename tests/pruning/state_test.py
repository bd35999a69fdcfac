"""Where the states of methods are found."""

from absl.testing import absltest
import jax
import jax.numpy as jnp

from jaxopt_compress.pruning import state as state_lib


class StateTest(absltest.TestCase):
  def test_states_are_found_in_their_order(self):
    one = state_lib.State(jnp.int32(1), {'a': jnp.ones(2, bool)})
    two = state_lib.State(jnp.int32(2), {}, rest='zero')
    tree = {'x': (jnp.ones(3), one), 'y': [None, {'z': two}]}
    self.assertEqual([int(s.step) for s in state_lib.states(tree)], [1, 2])
    self.assertEqual(state_lib.states({'x': jnp.ones(2)}), [])

  def test_what_is_not_an_array_stays_under_jit(self):
    state = state_lib.State(jnp.int32(1), {}, rest='zero', pull=0.5)
    out = jax.jit(lambda s: s)(state)
    self.assertEqual((out.rest, out.pull, out.skip), ('zero', 0.5, None))


if __name__ == '__main__':
  absltest.main()
