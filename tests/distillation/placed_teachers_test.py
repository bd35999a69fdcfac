"""A teacher in a form and in a place of its own, beside a student that is everywhere."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.distillation import losses
from jaxopt_compress.distillation import teachers
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.parallel import placing

WIDE = 64


def apply(params, x):
  h = jax.nn.relu(x @ params['in']['kernel'].astype(x.dtype))
  return h @ params['out']['kernel'].astype(x.dtype)


def weights(width, key):
  a, b = jax.random.split(jax.random.key(key))
  return {
    'in': {'kernel': jax.random.normal(a, (16, width))},
    'out': {'kernel': jax.random.normal(b, (width, 8)) / width**0.5},
  }


# Columns of the first, rows of the second: one sum over devices for both.
SPECS = {'in': {'kernel': P(None, 'data')}, 'out': {'kernel': P('data', None)}}
FORMS = {
  'float32': lambda p: p,
  'bfloat16': lambda p: jc.cast(p, jnp.bfloat16),
  'int8': lambda p: jc.quantize(p, [('.*', 'W8A16')], uses=USES),
  'int8 x int8': lambda p: jc.quantize(p, [('.*', 'W8A8')], uses=USES),
}
TEACHER = weights(WIDE, 0)
USES = jc.uses(apply)(TEACHER, jnp.ones((2, 16)))


@jax.jit
def step(student, teacher, x):
  """The student's loss and its gradient."""
  taught = teachers.frozen(jc.lift(apply))

  def loss(student, teacher):
    total, count = losses.kl(apply(student, x), taught(teacher, x))
    return total / count

  return jax.value_and_grad(loss)(student, teacher)


class PlacedTeachersTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_spread_over_devices(self, form):
    x = jax.random.normal(jax.random.key(2), (12, 16))
    student, teacher = weights(4, 1), FORMS[form](TEACHER)
    want, want_grad = step(student, teacher, x)
    mesh = mesh_lib.data_mesh()
    spread = placing.device_put(teacher, mesh, SPECS)
    everywhere = mesh_lib.replicate((student, x), mesh)
    got, got_grad = step(everywhere[0], spread, everywhere[1])
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(
      jax.tree.leaves(got_grad), jax.tree.leaves(want_grad), strict=True
    ):
      np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
      self.assertTrue(np.abs(b).sum() > 0)
    # The student's tree, and nothing of the teacher's.
    self.assertEqual(jax.tree.structure(got_grad), jax.tree.structure(student))
    for leaf in jax.tree.leaves(spread):
      if leaf.size >= WIDE:
        self.assertEqual(leaf.addressable_data(0).size * 4, leaf.size)
    for leaf in jax.tree.leaves(got_grad):
      self.assertTrue(leaf.is_fully_replicated)

  @parameterized.parameters(*FORMS)
  def test_no_weight_is_a_constant_of_the_program(self, form):
    student, teacher = weights(4, 1), FORMS[form](TEACHER)
    program = jax.make_jaxpr(step)(student, teacher, jnp.ones((2, 16)))
    self.assertLess(sum(np.size(c) for c in program.consts), 16)

  @parameterized.parameters('float32', 'bfloat16')
  def test_a_teacher_has_no_gradient(self, form):
    x, student = jnp.ones((2, 16)), weights(4, 1)
    taught = teachers.frozen(jc.lift(apply))

    @jax.jit
    def loss(teacher):
      return losses.kl(apply(student, x), taught(teacher, x))[0]

    for g in jax.tree.leaves(jax.grad(loss)(FORMS[form](TEACHER))):
      self.assertFalse(g.any())


if __name__ == '__main__':
  absltest.main()
