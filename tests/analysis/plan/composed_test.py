"""One plan of two."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_compress as jc

X = jnp.ones((3, 2))


def blocks(p, x):
  for block in p['blocks']:
    x = x + jax.nn.relu(x @ block['up']) @ block['down']
  return x @ p['head']


def scanned(p, x):
  def layer(x, p):
    return x + jax.nn.relu(x @ p['up']) @ p['down'], None

  return jax.lax.scan(layer, x, p['blocks'])[0] @ p['head']


def _drawn(stacked=False):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  made = [{'up': draw(2, 8), 'down': draw(8, 2)} for _ in range(4)]
  if stacked:
    made = jax.tree.map(lambda *x: jnp.stack(x), *made)
  return {'blocks': made, 'head': draw(2, 5)}


class ThenTest(parameterized.TestCase):
  @parameterized.parameters(
    # of the first network, of what that makes
    (blocks, {'blocks/1/down:-2': [7, 1, 2, 5]}, {'blocks/1/down:-2': [2, 0]}),
    (blocks, {'blocks/1/down:-2': [7, 1, 2, 5]}, {'blocks/3/down:-2': [2, 0]}),
    (blocks, {'layers': [0, 1, 3]}, {'layers': [2, 0]}),
    (blocks, {'layers': [1, 3]}, {'layers': [1], 'blocks/1/down:-2': [1, 2]}),
    (scanned, {'blocks/down:-2': [7, 1, 2]}, {'blocks/down:-2': [2, 0]}),
    (scanned, {'layers': [1, 3]}, {'blocks/down:-2': [[2, 0], [1, 5]]}),
    (
      scanned,
      {'blocks/down:-2': [[1, 2, 3], [3, 4, 5], [4, 6, 7], [0, 1, 2]]},
      {'layers': [2, 1], 'blocks/down:-2': [[2, 0], [1, 2], [0, 1], [1, 0]]},
    ),
  )
  def test_one_after_the_other(self, fun, first, second):
    params = _drawn(fun is scanned)

    def planned(sources, params):
      found = jc.structure(fun)(params, X)
      layers = [n for n, g in found.groups.items() if found.ordered(n)]
      layers = next(n for n in layers if not found.groups[n].locked)
      return jc.Plan(
        found, {layers if n == 'layers' else n: x for n, x in sources.items()}
      )

    state = optax.adam(0.1).init(params)
    a = planned(first, params)
    b = planned(second, jc.shrink(a, params))
    both = jc.Plan.from_json(a.then(b).to_json())
    chex.assert_trees_all_equal(
      jc.shrink(both, (params, state)),
      jc.shrink(b, jc.shrink(a, (params, state))),
    )

  def test_refused(self):
    params = _drawn()
    found = jc.structure(blocks)(params, X)
    a = jc.Plan(found, {'blocks/1/down:-2': [7, 1, 2, 5]})
    with self.assertRaisesRegex(
      ValueError, r'makes blocks/1/down .*\(4, 2\), and'
    ):
      a.then(a)
    (layers,) = found.layers
    again = jc.structure(blocks)(jc.shrink(a, params), X)
    b = jc.Plan(again, {'blocks/0:layers': [1]})
    with self.assertRaisesRegex(ValueError, 'are not all the layers'):
      a.then(b)
    twice = jc.Plan(found, {layers: [0, 0]})
    again = jc.structure(blocks)(jc.shrink(twice, params), X)
    b = jc.Plan(again, {'blocks/1/down:-2': [0, 1]})
    with self.assertRaisesRegex(ValueError, 'copies .* apart'):
      twice.then(b)


if __name__ == '__main__':
  absltest.main()
