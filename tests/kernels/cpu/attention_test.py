"""Attention of the library against float64, on every instruction path."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import attention_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import attention
from jaxopt_compress.kernels.cpu import native

PATHS = native.paths()
# Many queries, few of them, and one whose keys are split between workers.
PLACES = {'many': (40, 70), 'a few': (4, 70), 'one': (1, 1100)}


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


def _operands(t, s, heads=2, d=32, b=2, **more):
  rng = np.random.default_rng(t + s)
  q, k, v = (
    rng.normal(0, 1, (b, n, heads, d)).astype(np.float32) for n in (t, s, s)
  )
  return attention.Operands(q, k, v, **more)


def _run(p, form=attention.Form(scale=32**-0.5), path='', **how):
  p = jax.tree.map(jnp.asarray, p)
  return np.asarray(attention.attention(p, form, path=path, **how))


class AttentionTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (f'{name} on {path}', places, path)
    for name, places in PLACES.items()
    for path in PATHS
  )
  def test_error(self, places, path):
    for form in (
      attention.Form(scale=32**-0.5),
      attention.Form(scale=32**-0.5, causal=True),
    ):
      p = _operands(*places)
      y = _run(p, form, path)
      off = np.abs(y - oracle.expected(p, form)).max()
      self.assertLess(off / np.abs(p.value).max(), 2e-6)

  @parameterized.named_parameters(
    (f'{name} on {path}', places, path)
    for name, places in PLACES.items()
    for path in PATHS
  )
  def test_what_is_not_finite(self, places, path):
    t, s = places
    clean = _operands(t, s, b=1)
    form = attention.Form(scale=32**-0.5)
    for bad in (np.nan, np.inf, -np.inf):
      for name, at in (('query', t - 1), ('key', s // 2), ('value', s - 1)):
        x = getattr(clean, name).copy()
        x[0, at, 0, 3] = bad
        p = dataclasses.replace(clean, **{name: x})
        y, expected = _run(p, form, path), oracle.expected(p, form)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected), name)
        np.testing.assert_array_equal(np.isinf(y), np.isinf(expected), name)

  @parameterized.product(places=sorted(PLACES.values()), path=PATHS)
  def test_who_sees_nothing(self, places, path):
    p = _operands(*places, key_lengths=np.int32([0, 5]))
    for masked in (-np.inf, -1e9, attention.Form().masked):
      form = attention.Form(scale=1.0, masked=masked)
      y, expected = _run(p, form, path), oracle.expected(p, form)
      np.testing.assert_allclose(y, expected, atol=1e-5)

  @parameterized.parameters(*PATHS)
  def test_one_key_in_the_last_run(self, path):
    mask = np.ones((1, 1, 1, 994), bool)
    mask[..., 0] = False
    p = _operands(16, 994, heads=1, d=128, b=1, mask=mask)
    p.key[:, -1] = 3 * p.query[:, 3]
    form = attention.Form(scale=128**-0.5)
    y, expected = _run(p, form, path), oracle.expected(p, form)
    np.testing.assert_allclose(y, expected, atol=1e-5)

  @parameterized.parameters(*PATHS)
  def test_many_equal_weights_beside_a_large_one(self, path):
    # Added to a sum near 1 one by one, all are rounded to the same side.
    p = _operands(16, 512, heads=1, b=1)
    p.key[:] = 0.0
    p.key[:, 0] = p.query[0, 0] * 12 / np.sum(p.query[0, 0] ** 2)
    p.query[:] = p.query[0, 0]
    form = attention.Form(scale=1.0)
    off = np.abs(_run(p, form, path) - oracle.expected(p, form)).max()
    self.assertLess(off / np.abs(p.value).max(), 2e-6)

  @parameterized.product(places=sorted(PLACES.values()), path=PATHS)
  def test_nan_of_a_query_and_of_values_not_read(self, places, path):
    t, s = places
    p = _operands(t, s, b=1, key_lengths=np.int32([s - 9]))
    expected = oracle.expected(p, attention.Form(scale=32**-0.5))
    expected[:, t // 2] = np.nan
    p.value[:, -9:] = np.nan
    p.query[:, t // 2] = np.nan
    np.testing.assert_allclose(_run(p, path=path), expected, atol=1e-5)

  def test_additive_mask_of_the_least_number(self):
    bias = np.zeros((1, 1, 40, 70), np.float32)
    bias[:, :, 7:9] = np.finfo(np.float32).min
    p = _operands(40, 70, bias=bias)
    y = _run(p)
    mean = p.value.mean(1, keepdims=True)
    np.testing.assert_allclose(
      y[:, 7:9], np.broadcast_to(mean, y[:, 7:9].shape), atol=2e-6
    )

  def test_leading_axes(self):
    p = _operands(9, 12)
    form = attention.Form(scale=32**-0.5)
    y = _run(dataclasses.replace(p, query=np.stack([p.query, -p.query])), form)
    for got, q in zip(y, (p.query, -p.query)):
      expected = oracle.expected(dataclasses.replace(p, query=q), form)
      np.testing.assert_allclose(got, expected, atol=1e-5)

  def test_mistakes(self):
    p = _operands(9, 12)
    with self.assertRaisesRegex(Exception, 'no instruction path nonsense'):
      _run(p, path='nonsense')
    for wrong in (
      dict(key=p.key[:, :, :, :8]),
      dict(value=p.value[:, :5]),
      dict(mask=np.ones((1, 1, 9, 5), bool)),
      dict(key_scale=np.ones((2, 12, 2, 32), np.float32)),
      dict(key_lengths=np.ones(3, np.int32)),
    ):
      with self.assertRaisesRegex(Exception, 'shapes of attention'):
        _run(dataclasses.replace(p, **wrong))
    layers = attention.Operands(
      p.query,
      *np.zeros((2, 3, 2, 12, 2, 32), np.int8),
      key_scale=np.ones((3, 1, 1, 1, 1), np.float32),
      value_scale=np.ones((3, 1, 1, 1, 1), np.float32),
      layer=np.int32(2),
    )
    _run(layers)
    for name in ('key', 'value', 'key_scale', 'value_scale'):
      for n in (1, 2):
        less = {name: getattr(layers, name)[:n]}
        with self.assertRaisesRegex(Exception, 'shapes of attention'):
          _run(dataclasses.replace(layers, **less))
    for wrong in (
      dict(query=p.query.astype(np.int8)),
      dict(mask=np.ones((1, 1, 1, 12), np.int8)),
    ):
      with self.assertRaisesRegex(Exception, 'types or orders'):
        _run(dataclasses.replace(p, **wrong), out_dtype=jnp.float32)


if __name__ == '__main__':
  absltest.main()
