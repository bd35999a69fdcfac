"""Caches are read where they lie: filled places, one layer, codes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.kernels import scores


def _decoder(**options):
  sizes = dict(vocab=24, width=32, depth=2, heads=4, max_length=16, tied=False)
  module = models.build('decoder', **(sizes | options))
  model = models.functional(module)

  def step(params, tokens, cache):
    y, out, _ = model.apply(params, model.variables, (tokens, cache))
    return y, out['cache']

  return module, model.params, step


def _packed(params, step, *args):
  uses = jc.uses(step)(params, *args)
  rules = [('.*kernel', 'int8'), ('.*', None)]
  return jc.pack(jc.quantize(params, rules, uses), uses, target='cpu')


def _read_by_kernel(f, *args):
  """What attention reads while a function is traced: [(operands, form)]."""
  seen, attend = [], scores.attend

  def noted(p, form, out_dtype=None):
    seen.append((p, form))
    return attend(p, form, out_dtype)

  scores.attend = noted
  try:
    jax.jit(f).lower(*args)
  finally:
    scores.attend = attend
  return seen


class OperandsTest(parameterized.TestCase):
  @parameterized.parameters(
    (False, 4, 'float32', 1),
    (False, 2, 'int8', 1),
    (True, 2, 'float32', 3),
    (True, 4, 'int8', 1),
  )
  def test_steps_over_a_cache(self, scan, kv_heads, cache, time):
    module, params, step = _decoder(scan=scan, kv_heads=kv_heads)
    kv = module.init_cache(2)
    if cache == 'int8':
      rules = [('key|value', 'int8'), ('.*', None)]
      kv = jc.quantization.quantize_cache(kv, rules)
    tokens = jnp.arange(2 * time).reshape(2, time)
    packed = _packed(params, step, tokens, module.init_cache(2))
    dense = jc.materialize(packed)
    lifted = jax.jit(jc.lift(step, keep=True))
    first, second = kv, kv
    for _ in range(3):
      y, first = lifted(packed, tokens, first)
      want, second = lifted(dense, tokens, second)
      # What is written to a cache in codes may round the other way.
      within = 2e-5 if cache == 'float32' else 2e-2
      np.testing.assert_allclose(y, want, rtol=0, atol=within)
    for p, form in _read_by_kernel(
      jc.lift(step, keep=True), packed, tokens, kv
    ):
      # The cache of all layers, and how much of it is filled.
      self.assertEqual(p.key.shape, (2, 2, kv_heads, 16, 8))
      self.assertEqual(p.key.dtype, jnp.dtype(cache))
      self.assertEqual(p.key_scale is not None, cache == 'int8')
      self.assertEqual(form.key, 'bhtd')
      self.assertEqual(p.key_lengths.shape, (2,))
      self.assertEqual(p.mask is not None, time > 1)

  def test_how_many_times(self):
    module, params, step = _decoder(scan=False)
    args = jnp.zeros((2, 1), int), module.init_cache(2)
    packed = _packed(params, step, *args)
    seen = _read_by_kernel(jc.lift(step), packed, *args)
    self.assertLen(seen, 2)

  @parameterized.parameters(1, 2)
  def test_a_cache_is_not_copied(self, batch):
    module, params, step = _decoder(scan=False)
    args = jnp.zeros((batch, 1), int), module.init_cache(batch)
    packed = _packed(params, step, *args)
    f = jax.jit(jc.lift(step), donate_argnums=2)
    text = f.lower(packed, *args).compile().as_text()
    cache = f'f32[2,{batch},4,16,8]'
    made = [line for line in text.splitlines() if f'= {cache}' in line]
    self.assertNotEmpty([x for x in made if 'dynamic-update-slice' in x])
    self.assertEmpty([x for x in made if ' copy(' in x])

  def test_a_narrow_cache_of_wide_queries(self):
    def step(w, q, k, v, i):
      k, v = (x[i].astype(jnp.float32) for x in (k, v))
      return jax.nn.dot_product_attention(q, k, v), q[0, 0] @ w

    kv = [
      jax.random.normal(jax.random.key(i), (3, 2, 7, 4, 8), jnp.bfloat16)
      for i in range(2)
    ]
    q = jax.random.normal(jax.random.key(2), (2, 5, 4, 8))
    w = jnp.ones((8, 8))
    uses = jc.uses(step)(w, q, *kv, 1)
    packed = jc.pack(jc.quantize(w, [('.*', 'int8')], uses), uses, target='cpu')
    got, _ = jax.jit(jc.lift(step))(packed, q, *kv, jnp.int32(1))
    want, _ = step(w, q, *kv, 1)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


if __name__ == '__main__':
  absltest.main()
