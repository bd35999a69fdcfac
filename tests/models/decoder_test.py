"""The decoder: what it computes, in numpy, and that its forms agree."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.core import rules
from jaxopt_compress.models import decoder

SMALL = dict(
  vocab=13,
  width=16,
  depth=2,
  heads=4,
  kv_heads=2,
  mlp_width=24,
  max_length=12,
)
TOKENS = np.random.default_rng(0).integers(0, 13, (2, 9)).astype(np.int32)


def small(**kwargs):
  return _small(tuple(sorted((SMALL | kwargs).items())))


@functools.cache
def _small(items):
  # One program: an eager init compiles one for each shape. The same for apply.
  abstract = models.abstract('decoder', **dict(items))
  build = lambda: models.build('decoder', **dict(items))  # noqa: E731
  params = jax.jit(lambda: models.functional(build()).params)()
  apply = jax.jit(abstract.apply, static_argnames='train')
  return models.Functional(apply, params, {})


def run(f, x=TOKENS, **kwargs):
  return f.apply(f.params, f.variables, x, **kwargs)


def empty_cache(**kwargs):
  build = lambda: models.build('decoder', **(SMALL | kwargs))  # noqa: E731
  return nnx.eval_shape(build).init_cache(2)  # Needs sizes only.


# ------------------------------------------------- the equations, one at a time


def rms_norm(x, scale):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def turn(x, position):
  """A complex product: the pair (x_i, x_{i + d/2}) times e^(i angle)."""
  half = len(x) // 2
  angle = position * 10000.0 ** (-2 * np.arange(half) / len(x))
  z = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag])


def oracle(params, tokens, heads, kv_heads):
  """Logits [time, vocab] of one sequence [time], one position at a time."""
  table = params['embed']['embedding']
  width = table.shape[-1]
  d = width // heads
  x = table[tokens]
  if 'past' in params:
    past = params['past']['embedding'].reshape(-1, *table.shape)
    x = x + sum(
      past[k][np.pad(tokens, (k + 1, 0))[: len(tokens)]]
      for k in range(len(past))
    )
    x = x / np.sqrt(len(past) + 1)
  x = x * np.sqrt(width)
  for i in range(len(params['blocks'])):
    block = params['blocks'][str(i)]
    kernel = {k: v['kernel'] for k, v in (block['attn'] | block['mlp']).items()}
    n = rms_norm(x, block['attn_norm']['scale'])
    q, k, v = (n @ kernel[name] for name in 'qkv')
    y = np.zeros_like(x)
    for t in range(len(tokens)):
      for h in range(heads):
        g = h // (heads // kv_heads)
        here, there = slice(h * d, h * d + d), slice(g * d, g * d + d)
        score = [
          turn(q[t, here], t) @ turn(k[s, there], s) / np.sqrt(d)
          for s in range(t + 1)
        ]
        y[t, here] = softmax(np.array(score)) @ v[: t + 1, there]
    x = x + y @ kernel['o']
    n = rms_norm(x, block['mlp_norm']['scale'])
    gate = n @ kernel['gate']
    x = x + (gate / (1 + np.exp(-gate)) * (n @ kernel['up'])) @ kernel['down']
  x = rms_norm(x, params['norm']['scale'])
  return x @ (params['head']['kernel'] if 'head' in params else table.T)


def shaken(params):
  """Norm scales away from one, so that they count; numpy arrays."""
  scaled = rules.map_named(
    lambda path, x: (
      x * np.linspace(0.5, 2, x.shape[-1], dtype=np.float32)
      if path.endswith('scale')
      else x
    ),
    params,
  )
  return jax.tree.map(np.asarray, scaled)


class EquationsTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(heads=4, kv_heads=2),
    dict(heads=4, kv_heads=1, lookback=3),
    dict(heads=2, kv_heads=None, tied=False),
  )
  def test_logits(self, **kwargs):
    f = small(scan=False, **kwargs)
    params = shaken(f.params)
    heads = kwargs['heads']
    kv_heads = kwargs['kv_heads'] or heads
    got = f.apply(params, {}, TOKENS)[0]
    for tokens, y in zip(TOKENS, got, strict=True):
      np.testing.assert_allclose(
        y, oracle(params, tokens, heads, kv_heads), atol=2e-5
      )

  def test_nothing_is_seen_ahead(self):
    f = small()
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 13
    before, after = run(f)[0], run(f, changed)[0]
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    self.assertTrue(np.all(np.any(before[:, 5:] != after[:, 5:], axis=-1)))

  def test_out_is_named_and_shaped(self):
    logits, out, variables = run(small())
    self.assertEqual(logits.shape, (2, 9, 13))
    self.assertEqual(
      {name: x.shape for name, x in out.items()},
      dict.fromkeys(('embed', 'block0', 'block1', 'features'), (2, 9, 16)),
    )
    self.assertEqual(variables, {})

  def test_parameters_by_name(self):
    self.assertEqual(
      {p: x.shape for p, x in rules.named_leaves(small(tied=False).params)},
      {
        'blocks/attn/k/kernel': (2, 16, 8),
        'blocks/attn/o/kernel': (2, 16, 16),
        'blocks/attn/q/kernel': (2, 16, 16),
        'blocks/attn/v/kernel': (2, 16, 8),
        'blocks/attn_norm/scale': (2, 16),
        'blocks/mlp/down/kernel': (2, 24, 16),
        'blocks/mlp/gate/kernel': (2, 16, 24),
        'blocks/mlp/up/kernel': (2, 16, 24),
        'blocks/mlp_norm/scale': (2, 16),
        'embed/embedding': (13, 16),
        'head/kernel': (16, 13),
        'norm/scale': (16,),
      },
    )


FORMS = [dict(scan=s, remat=r) for s in (True, False) for r in (True, False)]


class FormsTest(parameterized.TestCase):
  def test_a_seed_means_the_same_weights(self):
    scanned, unrolled = small(scan=True), small(scan=False)
    chex.assert_trees_all_equal(decoder.stack(unrolled.params), scanned.params)
    chex.assert_trees_all_equal(
      decoder.unstack(scanned.params), unrolled.params
    )

  def test_stacking_what_is_stacked_is_refused(self):
    scanned = small(scan=True).params
    with self.assertRaisesRegex(ValueError, 'stacked already'):
      decoder.stack(scanned)
    with self.assertRaisesRegex(ValueError, 'unrolled already'):
      decoder.unstack(decoder.unstack(scanned))

  @parameterized.parameters(*FORMS)
  def test_logits_and_gradients_agree(self, **form):
    f = small(**form)
    want_out, want = self.logits_and_gradients(scan=False)
    got_out, got = self.logits_and_gradients(**form)
    if form['scan']:
      want = decoder.stack(want)
    chex.assert_trees_all_equal_shapes(got, f.params)
    chex.assert_trees_all_close(got_out, want_out, atol=1e-5)
    chex.assert_trees_all_close(got, want, atol=1e-5)

  def logits_and_gradients(self, **form):
    f = small(**form)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(params):
      logits, out, _ = f.apply(params, {}, TOKENS)
      loss = (logits**2).mean() + (out['block0'] ** 2).mean()
      return loss, out | {'logits': logits}

    return gradients(f.params)[::-1]

  def test_dropout_agrees(self):
    scanned = small(dropout=0.5, scan=True, remat=True)
    unrolled = small(dropout=0.5, scan=False)
    draw = lambda f, i: run(f, train=True, rngs=jax.random.key(i))[0]  # noqa: E731
    got = draw(scanned, 1)
    np.testing.assert_allclose(got, draw(unrolled, 1), atol=1e-5)
    self.assertFalse(np.allclose(got, draw(scanned, 2)))
    np.testing.assert_allclose(run(scanned)[0], run(small())[0], atol=1e-6)
    self.assertFalse(np.allclose(got, run(scanned)[0]))

  def test_dropout_without_a_key_is_told(self):
    with self.assertRaisesRegex(ValueError, 'dropout=0.5, and train=True'):
      run(small(dropout=0.5), train=True)

  def test_bfloat16(self):
    f = small(dtype=jnp.bfloat16)
    logits = run(f)[0]
    self.assertEqual(logits.dtype, jnp.bfloat16)
    self.assertEqual(
      {x.dtype for x in jax.tree.leaves(f.params)}, {jnp.dtype('float32')}
    )
    np.testing.assert_allclose(
      logits.astype(jnp.float32), run(small())[0], atol=0.1
    )
    cache = empty_cache(dtype=jnp.bfloat16)
    self.assertEqual(cache['key'].dtype, jnp.bfloat16)
    after = jax.eval_shape(f.apply, f.params, {}, (TOKENS, cache))[1]['cache']
    chex.assert_trees_all_equal_shapes_and_dtypes(cache, after)


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(scan=True, sizes=(1,) * 9),
    dict(scan=True, sizes=(1, 4, 4), lookback=3),
    dict(scan=False, sizes=(4, 1, 4), lookback=2),
    dict(scan=False, sizes=(9,)),
  )
  def test_equal_to_the_full_forward(self, sizes, **kwargs):
    f = small(**kwargs)
    cache = empty_cache(**kwargs)
    logits, at = [], 0
    for n in sizes:
      x = (TOKENS[:, at : at + n], cache)
      y, out, _ = run(f, x)
      chex.assert_trees_all_equal_shapes_and_dtypes(cache, out['cache'])
      cache, at = out['cache'], at + n
      logits.append(y)
      self.assertEqual(int(cache['length']), at)
    np.testing.assert_allclose(jnp.concatenate(logits, 1), run(f)[0], atol=1e-5)

  def test_method(self):
    @jax.jit
    def calls(tokens):
      model = models.build('decoder', **SMALL)
      first, cache = model.decode(tokens[:, :5], model.init_cache(2))
      rest, _ = model.decode(tokens[:, 5:], cache)
      # No call changes the model, or the cache that it was given.
      again, _ = model.decode(tokens[:, 5:], cache)
      return model(tokens)[0], first, rest, again

    want, first, rest, again = calls(TOKENS)
    np.testing.assert_allclose(rest, again, atol=1e-6)
    np.testing.assert_allclose(
      jnp.concatenate([first, rest], 1), want, atol=1e-5
    )

  def test_under_scan(self):
    f = small()
    cache = empty_cache()

    def step(cache, token):
      logits, out, _ = f.apply(f.params, {}, (token[:, None], cache))
      return out['cache'], logits[:, 0]

    _, logits = jax.lax.scan(step, cache, TOKENS.T)
    np.testing.assert_allclose(logits.swapaxes(0, 1), run(f)[0], atol=1e-5)

  def test_beyond_the_cache_is_nan(self):
    f = small()
    cache = empty_cache()
    cache['length'] = jnp.asarray(11, jnp.int32)
    logits, _, _ = run(f, (TOKENS[:, :2], cache))
    self.assertTrue(np.isfinite(logits[:, 0]).all())
    self.assertTrue(np.isnan(logits[:, 1]).all())


class ShrunkTest(parameterized.TestCase):
  @parameterized.parameters(dict(scan=True), dict(scan=False))
  def test_some_heads_and_features_are_gone(self, **form):
    f = small(**form)
    fun = lambda p, x: f.apply(p, {}, x)[0]  # noqa: E731
    structure = jc.structure(fun)(f.params, TOKENS)
    free = [
      n
      for n, g in structure.free.items()
      if not g.inexact and n not in structure.layers
    ]
    self.assertEqual({structure.groups[n].fixed for n in free}, {''})
    # Key heads, query heads within one, features of values, of the MLP. Of the
    # layers in a row only the first loses some: a cache has room for all.
    first = [n for n in free if 'blocks/1' not in n]
    self.assertLen(first, 4)
    keep = {n: np.arange(structure.groups[n].size)[1::2] for n in first}
    plan = jc.Plan(structure, keep)
    masked, shrunk = plan.mask(f.params), plan.apply(f.params)
    want = fun(masked, TOKENS)
    np.testing.assert_allclose(fun(shrunk, TOKENS), want, atol=1e-5)

    build = lambda: models.build('decoder', **(SMALL | form))  # noqa: E731
    model = nnx.eval_shape(build)
    nnx.update(model, shrunk if form['scan'] else _numbered(shrunk))
    cache = model.init_cache(2)
    heads = 1 if form['scan'] else 2
    self.assertEqual(cache['value'].shape, (2, 2, heads, 12, 2 * heads))
    got, _, _ = f.apply(shrunk, {}, (TOKENS, cache))
    np.testing.assert_allclose(got, want, atol=1e-5)


def _numbered(params):
  """As NNX names the blocks of a list: by int."""
  blocks = {int(i): block for i, block in params['blocks'].items()}
  return params | {'blocks': blocks}


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(width=18), 'width=18 over heads=4'),
    (dict(width=12), 'width=12 over heads=4 is no even head size'),
    (dict(kv_heads=3), 'heads=4 is no multiple of kv_heads=3'),
  )
  def test_sizes(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      small(**kwargs)

  @parameterized.parameters(
    (np.zeros((2, 13), np.int32), '13 tokens are more than max_length=12'),
    (np.zeros(3, np.int32), r'not int32\[3\]'),
    (np.zeros((2, 3), np.float32), r'not float32\[2, 3\]'),
  )
  def test_tokens(self, tokens, message):
    with self.assertRaisesRegex(ValueError, message):
      run(small(), tokens)

  def test_a_token_outside_the_vocabulary_is_nan(self):
    self.assertTrue(np.isnan(run(small(), np.full((1, 1), 13))[0]).all())


class CompressedTest(parameterized.TestCase):
  @parameterized.parameters(*FORMS)
  def test_uses_tell_the_axes(self, **form):
    f = small(**form)
    uses = jc.uses(f.apply)(f.params, {}, TOKENS)
    stacked = (-3,) if form['scan'] else ()
    for path, found in uses.items():
      axes = {(u.primitive, u.contracted, u.stacked) for u in found}
      if path.endswith('kernel'):
        self.assertEqual(axes, {('dot_general', (-2,), stacked)})
      if path == 'embed/embedding':
        self.assertEqual(
          axes, {('dot_general', (-1,), ()), ('gather', (-1,), ())}
        )

  @parameterized.product(scan=(True, False), scheme=('W8A16', 'W8A8'))
  def test_quantized_runs_on_codes(self, scan, scheme):
    f = small(scan=scan)
    uses = jc.uses(f.apply)(f.params, {}, TOKENS)
    wanted = [(r'.*(kernel|embedding)', scheme), (r'.*', None)]
    params = jc.quantize(f.params, wanted, uses)
    met = [
      m
      for m in jc.explain(f.apply)(params, {}, TOKENS)
      if m.primitive in ('dot_general', 'gather')
    ]
    self.assertNotEmpty(met)
    self.assertEqual([m for m in met if not m.native], [])
    got = jax.jit(jc.lift(f.apply))(params, {}, TOKENS)[0]
    if scheme == 'W8A16':
      want = f.apply(jc.materialize(params), {}, TOKENS)[0]
      np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(got, run(f)[0], atol=0.15)

  def test_compressed_blocks_are_stacked_and_unstacked(self):
    f = small(scan=True)
    uses = jc.uses(f.apply)(f.params, {}, TOKENS)
    params = jc.quantize(
      f.params, [(r'blocks/.*/kernel', 'W8A16'), (r'.*', None)], uses
    )
    unrolled = decoder.unstack(params)
    got = jax.jit(jc.lift(small(scan=False).apply))(unrolled, {}, TOKENS)[0]
    want = jax.jit(jc.lift(f.apply))(params, {}, TOKENS)[0]
    np.testing.assert_allclose(got, want, atol=1e-5)
    chex.assert_trees_all_equal(decoder.stack(unrolled), params)


if __name__ == '__main__':
  absltest.main()
