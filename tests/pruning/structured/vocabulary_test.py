from absl.testing import absltest
from absl.testing import parameterized
from flax import linen
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.models import decoder

IDS = jnp.array([[3, 1, 7, 7], [0, 10, 3, 1]])
EMBED = dict(groups=['embed:-2'])
KEPT = [0, 1, 3, 5, 7, 10]  # 5 is kept besides


class OfNNX(nnx.Module):
  def __init__(self, tied, rngs):
    self.embed = nnx.Embed(11, 8, rngs=rngs)
    self.norm = nnx.RMSNorm(8, rngs=rngs)
    self.mlp = nnx.Linear(8, 8, rngs=rngs)
    self.head = None if tied else nnx.Linear(8, 11, rngs=rngs)

  def __call__(self, ids):
    x = self.embed(ids)
    x = x + jax.nn.gelu(self.mlp(self.norm(x)))
    return self.head(x) if self.head else self.embed.attend(x)


class OfLinen(linen.Module):
  tied: bool
  vocab: int = 11

  @linen.compact
  def __call__(self, ids):
    embed = linen.Embed(self.vocab, 8)
    x = embed(ids)
    x = x + jax.nn.gelu(linen.Dense(8)(linen.LayerNorm()(x)))
    return embed.attend(x) if self.tied else linen.Dense(self.vocab)(x)


def nnx_model(tied):
  graphdef, params = nnx.split(OfNNX(tied, nnx.Rngs(0)))
  f = lambda params, ids: nnx.merge(graphdef, params)(ids)
  return f, f, params


def linen_model(tied):
  model = OfLinen(tied)
  params = model.init(jax.random.key(0), IDS)
  return model.apply, OfLinen(tied, len(KEPT)).apply, params


def plain_model(tied):
  """Without negative ids, and rows that one-hot vectors choose."""

  def f(params, ids):
    table = params['embed']
    x = jax.nn.one_hot(ids, table.shape[0]) @ table
    head = table.T if tied else params['head']
    return x @ head + params['bias'][None, None]

  keys = jax.random.split(jax.random.key(0), 3)
  shapes = {'embed': (11, 8), 'head': (8, 11), 'bias': (11,)}
  params = {
    name: jax.random.normal(key, shape)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    if not (tied and name == 'head')
  }
  return f, f, params


def library_model(tied):
  model = decoder.Decoder(11, 8, 2, 2, tied=tied, rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(model)
  f = lambda params, ids: nnx.merge(graphdef, params)(ids)[0]
  return f, f, params


MODELS = (nnx_model, linen_model, plain_model, library_model)


class VocabularyTest(parameterized.TestCase):
  @parameterized.product(model=MODELS, tied=(True, False))
  def test_the_others_are_as_before(self, model, tied):
    f, small, params = model(tied)
    found = jc.structure(f)(params, IDS)
    plan, ids = jc.pruning.trim_vocabulary(found, IDS, keep=(5,))
    self.assertEqual(np.flatnonzero(ids >= 0).tolist(), KEPT)
    self.assertEqual(set(plan.sizes.values()), {len(KEPT)})
    y = small(plan.apply(params), ids[IDS])
    want = f(params, IDS)[..., KEPT]
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-6)

  def test_the_unknown(self):
    f, _, params = plain_model(True)
    found = jc.structure(f)(params, IDS)
    batches = ({'ids': np.array([2]), 'more': np.array([[4, 2]])} for _ in 'ab')
    plan, ids = jc.pruning.trim_vocabulary(found, batches, unknown=7)
    self.assertEqual(ids.tolist(), [2, 2, 0, 2, 1, 2, 2, 2, 2, 2, 2])
    again = jc.Plan.from_json(plan.to_json())
    self.assertEqual(again.shapes, plan.shapes)

  def test_the_loss_in_the_program(self):
    def loss(params, ids):
      logits = jax.nn.log_softmax(params['embed'][ids] @ params['head'])
      return -jnp.take_along_axis(logits, ids[..., None], -1).mean()

    _, _, params = plain_model(False)
    found = jc.structure(loss)(params, IDS)
    plan, ids = jc.pruning.trim_vocabulary(found, IDS)
    # What numbers the rows numbers the logits: they are one group.
    self.assertEqual(plan.sizes, {'embed:-2': 5})
    # With nothing else to choose from, the loss is lower.
    self.assertLess(loss(plan.apply(params), ids[IDS]), loss(params, IDS))

  @parameterized.named_parameters(
    ('empty', dict(tokens=np.zeros(0, int), **EMBED), 'no tokens to keep'),
    ('read before', dict(tokens=iter(()), **EMBED), 'no tokens to keep'),
    ('too large', dict(tokens=IDS + 1, **EMBED), 'tokens 0 to 10.*1 to 11'),
    ('negative', dict(tokens=-IDS, **EMBED), 'tokens 0 to 10.*-10 to 0'),
    ('floats', dict(tokens=IDS * 1.0, **EMBED), 'float32; integers'),
    ('special', dict(tokens=IDS, keep=(11,), **EMBED), '11 to 11'),
    ('unknown', dict(tokens=IDS, unknown=-2, **EMBED), '-2 to -2'),
    ('name', dict(tokens=IDS, groups=['embd:-2']), "'embed:-2'"),
    ('locked', dict(tokens=IDS, groups=['embed:-1']), 'has to stay.*cumsum'),
    ('sizes', dict(tokens=IDS, groups=['embed:-2', 'kinds:-2']), 'one vocab'),
    ('several', dict(tokens=IDS), 'One vocabulary.*kinds:-2'),
  )
  def test_refused(self, options, message):
    def f(params, ids, kinds):
      x = params['embed'][ids] + params['kinds'][kinds]
      return jnp.cumsum(x, -1) @ params['mix']

    shapes = {'embed': (11, 8), 'kinds': (3, 8), 'mix': (8, 2)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    found = jc.structure(f)(params, IDS, IDS)
    with self.assertRaisesRegex(ValueError, message):
      jc.pruning.trim_vocabulary(found, **options)

  def test_no_vocabulary(self):
    for f, message in (
      (lambda p, ids: p['a'][ids % 3], 'locked by the program.*indexed'),
      (lambda p, x: x @ p['a'], 'Give token ids'),
    ):
      x = jnp.ones((2, 5), jnp.int32)
      found = jc.structure(f)({'a': jnp.ones((5, 2))}, x)
      with self.assertRaisesRegex(ValueError, message):
        jc.pruning.trim_vocabulary(found, IDS)


if __name__ == '__main__':
  absltest.main()
