from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import networks
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import flops
from jaxopt_compress.analysis.plan import resized


class ResizedTest(parameterized.TestCase):
  @parameterized.parameters(*networks.NETWORKS)
  def test_counts_what_the_smaller_program_takes(self, name):
    fun, p, x = networks.made(name)
    structure = jc.structure(fun)(p, x)
    program = resized.resized(fun)(p, x)
    self.assertEqual(program.axes, structure.axes)
    self.assertEqual(program.flops({}), flops.flops(fun)(p, x))
    # All that a program without sizes of its own may have smaller.
    plan = jc.Plan(
      structure,
      {
        n: np.arange(max(1, g.least, g.size // 2))
        for n, g in structure.free.items()
        if not g.fixed
      },
    )
    want = flops.flops(fun)(jc.shrink(plan, p), x)
    self.assertAlmostEqual(program.flops(plan.sizes) / want, 1, delta=1e-3)

  def test_layers_of_a_loop(self):
    def fun(p, x):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0]

    x = jnp.ones((2, 3))
    program = resized.resized(fun)(jnp.ones((4, 3, 3)), x)
    for n in (4, 1):
      want = flops.flops(fun)(jnp.ones((n, 3, 3)), x)
      self.assertEqual(program.flops({':-3': n}), want)

  def test_sizes_of_the_program(self):
    fun = lambda p, x: (x @ p['a']).reshape(5, 2, 4).sum(1) @ p['b']
    p = {'a': jnp.ones((3, 8)), 'b': jnp.ones((4, 2))}
    program = resized.resized(fun)(p, jnp.ones((5, 3)))
    self.assertEqual(program.flops({}), 5 * (2 * 3 * 8 + 8 + 2 * 4 * 2))
    ((inner,),) = (program.axes['b'][0],)
    self.assertEqual(program.flops({inner: 2}), 5 * (2 * 3 * 4 + 4 + 2 * 2 * 2))


if __name__ == '__main__':
  absltest.main()
