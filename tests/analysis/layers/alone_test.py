from absl.testing import absltest
from absl.testing import parameterized
import deep
import jax
import jax.numpy as jnp

import jaxopt_compress as jc
from jaxopt_compress.analysis.layers import alone
from jaxopt_compress.analysis.layers import cuts
from jaxopt_compress.analysis.layers import flat


def _branch(w, x):
  return x + jnp.tanh(x) @ w


class AloneTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('decoder', lambda: deep.gqa(1), 'blocks/0', {'o', 'down'}),
    ('vision', lambda: deep.vision(1), 'blocks/0', {'out', 'down'}),
    (
      'statistics',
      lambda: deep.resnet((1,)),
      'params/Residual_0',
      {'BatchNorm_1'},
    ),
  )
  def test_one_of_a_kind(self, made, prefix, last):
    fun, params, x = made()
    found = jc.structure(fun)(params, x)
    name = f'{prefix}:layers'
    group = found.groups[name]
    self.assertEqual((group.size, group.repeats), (1, True))
    self.assertRegex(group.locked[0], 'no other layer')
    words = found.passing[name]
    self.assertEqual({path.split('/')[-2] for path in words}, last)
    self.assertEqual(type(found).from_json(found.to_json()), found)

  def test_statistics_go_with_it(self):
    fun, params, x = deep.resnet((1,))
    found = jc.structure(fun)(params, x)
    self.assertEqual(
      found.layers['params/Residual_0:layers'],
      (('params/Residual_0', 'batch_stats/Residual_0'),),
    )

  @parameterized.named_parameters(
    # It changes the width; it is read around; no branch of its own.
    ('wider', lambda p, x: jnp.tanh(x @ p['v0']) @ p['u0']),
    ('around', lambda p, x: _branch(p['w0'], x) * x),
    ('plain', lambda p, x: jnp.tanh(x @ p['w0'])),
  )
  def test_no_layer(self, fun):
    p = {'w0': jnp.ones((4, 4)), 'v0': jnp.ones((4, 6)), 'u0': jnp.ones((6, 4))}
    found = jc.structure(fun)(p, jnp.ones((2, 4)))
    self.assertFalse([g for g in found.groups.values() if g.repeats])

  def test_one_part_of_a_block(self):
    """Two siblings in one branch: another one of them would be no block."""

    def fun(p, x):
      x = jnp.sin(x)
      return x + jnp.tanh(x @ p['Dense_1']) @ p['Dense_0']

    p = {'Dense_0': jnp.ones((6, 4)), 'Dense_1': jnp.ones((4, 6))}
    found = jc.structure(fun)(p, jnp.ones((2, 4)))
    with self.assertRaisesRegex(ValueError, 'put the block into a module'):
      jc.widen(found, depth=2)
    with self.assertRaisesRegex(ValueError, 'Dense_0:layers.*as Dense_1 is'):
      jc.widen(found, depth={'Dense_0:layers': 2})

  def test_what_it_gets_and_gives(self):
    def fun(p, x):
      x = jnp.sin(x)
      return jax.nn.relu(_branch(p['w0'], x)) @ p['head']

    p = {'head': jnp.ones((4, 3)), 'w0': jnp.ones((4, 4))}
    made = flat.flatten(jax.make_jaxpr(fun)(p, jnp.ones((2, 4))))
    program = cuts.Program(made, ['head', 'w0'])
    streams = alone.Streams(program)
    begin, end = streams.of('w0')
    names = [program.made_by[x][0].eqn.primitive.name for x in (begin, end)]
    # What follows it without parameters is counted with it.
    self.assertEqual(names, ['sin', 'max'])
    self.assertIsNone(streams.of('head'))


if __name__ == '__main__':
  absltest.main()
