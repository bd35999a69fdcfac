import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis.plan import resized
from jaxopt_compress.pruning.structured import stopwatch


def saved(test):
  table = stopwatch.Table(
    test.enterContext(tempfile.TemporaryDirectory()) + '/t'
  )
  table.seconds['dot'] = 0.5
  table.save()
  return table.file


class StopwatchTest(parameterized.TestCase):
  def test_any_arguments(self):
    key = jax.eval_shape(lambda: jax.random.key(0))
    ids = jax.ShapeDtypeStruct((4,), jnp.int32)
    table = jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)
    f = lambda p, ids, key: (
      p[ids] + jax.random.normal(key, (4, 2), jnp.bfloat16)
    )
    self.assertGreater(stopwatch.seconds(f, table, ids, key), 0)

  def test_kept(self):
    self.assertEqual(stopwatch.Table(saved(self)).seconds, {'dot': 0.5})
    self.assertEqual(stopwatch.Table(None).seconds, {})

  def test_of_another_machine(self):
    file = saved(self)
    read = json.loads(file.read_text())
    read['machine']['cores'] = 1000
    file.write_text(json.dumps(read))
    with self.assertRaisesRegex(
      ValueError, r"another machine.*'cores': \(1000, "
    ):
      stopwatch.Table(file)

  @parameterized.parameters(
    '', '[]', '{"machine": {}}', '{"machine": {}, "seconds": {"a": -1.0}}'
  )
  def test_damaged(self, text):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    file = pathlib.Path(folder) / 'x.json'
    file.write_text(text)
    with self.assertRaisesRegex(ValueError, 'no table of latencies. Remove'):
      stopwatch.Table(file)

  def test_depthwise_convolutions_fit_their_channels(self):
    def conv(w, x):
      return lax.conv_general_dilated(
        x,
        w,
        (1, 1),
        'SAME',
        feature_group_count=w.shape[-1],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      )

    program = resized.resized(conv)(
      jnp.ones((3, 3, 1, 8)), jnp.ones((1, 5, 5, 8))
    )
    # The image is an input: its channels stay, here they are asked all the same.
    ((name, _),) = [(n, s) for n, s in program.sizes.items() if s == 8]
    (equation,) = program.equations
    small = equation.at(program.sizes | {name: 2})
    self.assertIn('feature_group_count=2', stopwatch.described(small))
    self.assertGreater(stopwatch.Table().seconds_of(small), 0)


if __name__ == '__main__':
  absltest.main()
