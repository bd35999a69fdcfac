from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.models import decoder
from jaxopt_compress.pruning.structured import depth

IDS = jnp.array([[3, 1, 7, 7], [0, 10, 3, 1]])


def model(scan):
  """(apply, loss, params, name of the layers) of the same weights in two forms."""
  made = decoder.Decoder(11, 8, 3, 2, 1, scan=scan, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(made)

  def apply(params, ids):
    return nnx.merge(graphdef, params)(ids)[0]

  def loss(params, ids):
    scores = jax.nn.log_softmax(apply(params, ids)[:, :-1])
    return -jnp.take_along_axis(scores, ids[:, 1:, None], -1).mean()

  name = 'blocks/attn/k/kernel:-3' if scan else 'blocks/0:layers'
  return apply, loss, params, name


FORMS = {scan: model(scan) for scan in (False, True)}
FOUND = {
  scan: jc.structure(apply)(params, IDS)
  for scan, (apply, _, params, _) in FORMS.items()
}


def both(score, batches=(IDS,), of_loss=False):
  """What a score says of the loop and of the layers with names."""
  got = []
  for scan, (apply, loss, params, name) in FORMS.items():
    fun = loss if of_loss else apply
    (x,) = score(FOUND[scan], fun, params, batches).items()
    assert x[0] == name, x
    got.append(x[1])
  return got


class DepthTest(parameterized.TestCase):
  def test_cosine(self):
    named, looped = both(depth.cosine)
    np.testing.assert_allclose(named, looped, rtol=1e-5)
    # By the model's own intermediate values.
    graphdef, params = nnx.split(
      decoder.Decoder(11, 8, 3, 2, 1, rngs=nnx.Rngs(0))
    )
    out = nnx.merge(graphdef, params)(IDS)[1]
    xs = [out[k] for k in ('embed', 'block0', 'block1', 'block2')]
    xs = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in xs]
    want = [1 - (x * y).sum(-1).mean() for x, y in zip(xs, xs[1:])]
    np.testing.assert_allclose(named, want, rtol=1e-4)
    twice, _ = both(depth.cosine, [(IDS,), {'ids': IDS}])
    np.testing.assert_allclose(twice, 2 * named, rtol=1e-5)

  def test_angular(self):
    named, looped = both(depth.angular)
    np.testing.assert_allclose(named, looped, rtol=1e-5)
    self.assertTrue(((0 < named) & (named < 0.5)).all())

    def turned(p, x):  # by 30 degrees in each layer
      for layer in p['layers']:
        x = x @ layer['w']
      return x

    s, c = np.sin(np.pi / 6), np.cos(np.pi / 6)
    p = {'layers': [{'w': jnp.array([[c, s], [-s, c]])} for _ in range(4)]}
    x = jnp.ones((2, 3, 2))
    found = jc.structure(turned)(p, x)
    for layers in (1, 3):
      (got,) = depth.angular(found, turned, p, [x, x], layers=layers).values()
      np.testing.assert_allclose(got, [layers / 6] * (5 - layers), rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'layers=5'):
      depth.angular(found, turned, p, [x], layers=5)

  def test_loss(self):
    named, looped = both(depth.loss, of_loss=True)
    np.testing.assert_allclose(named, looped, atol=1e-5)
    _, loss, params, name = FORMS[False]
    for i, got in enumerate(named):
      others = [j for j in range(3) if j != i]
      masked = jc.Plan(FOUND[False], {name: others}).mask(params)
      want = loss(masked, IDS) - loss(params, IDS)
      np.testing.assert_allclose(got, want, atol=1e-5)

  def test_score(self):
    got = []
    for scan, (_, _, params, name) in FORMS.items():
      for score in ('magnitude', jnp.abs):
        x = depth.score(FOUND[scan], params, score=score)
        got.append(x[name])
    for x in got:
      np.testing.assert_allclose(x, got[0], rtol=1e-5)
    _, _, params, _ = FORMS[True]
    want = sum(
      jnp.abs(x).reshape(3, -1).sum(1)
      for x in jax.tree.leaves(params['blocks'])
    )
    np.testing.assert_allclose(got[0], want, rtol=1e-5)

  def test_selected_beside_channels(self):
    apply, _, params, name = FORMS[False]
    importance = jc.importance(FOUND[False], params)
    layers = depth.cosine(FOUND[False], apply, params, [IDS])
    by = [(name, 2), ('.*', None)]
    plan = jc.select(FOUND[False], {**importance, **layers}, keep=0.5, by=by)
    self.assertEqual(plan.sizes, {name: 2})
    self.assertNotIn(np.argmin(layers[name]), plan.sources[name])

  def test_refused(self):
    apply, _, params, name = FORMS[False]
    nan = jax.tree.map(lambda x: x, params)
    nan['blocks'][1]['mlp']['up']['kernel'][...] *= jnp.nan
    flat = lambda p, x: x @ p['w']
    found = jc.structure(flat)({'w': jnp.ones((2, 2))}, jnp.ones((1, 2)))
    for call, message in (
      (lambda: depth.cosine(found, flat, {}, [1]), 'has no layers'),
      (lambda: depth.cosine(FOUND[False], apply, params, []), 'no batch'),
      (
        lambda: depth.cosine(FOUND[False], apply, nan, [IDS]),
        r'layers \[1, 2\] have scores that are not',
      ),
      (lambda: depth.loss(FOUND[False], apply, params, [IDS]), 'one number'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        call()


if __name__ == '__main__':
  absltest.main()
