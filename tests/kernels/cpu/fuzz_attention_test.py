"""Attention of random sizes and forms on every instruction path."""

from absl.testing import absltest
import attention_oracle as oracle
import fuzz_draws
import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from jaxopt_compress.kernels.cpu import attention
from jaxopt_compress.kernels.cpu import native

# Of 241 keys of 288 features, the last one is a run of its own.
PLACES = st.one_of(
  st.integers(1, 9),
  st.integers(1, 70),
  st.sampled_from((97, 128, 241, 242, 257, 300)),
)
FEATURES = st.one_of(
  st.integers(1, 20), st.sampled_from((31, 32, 48, 64, 80, 288))
)
HAS = ('bias', 'mask', 'mask of keys', 'query', 'key')
MASKED = st.sampled_from(
  (attention.Form().masked, -np.inf, -1e9, float(np.finfo(np.float32).min), -5)
)


def setUpModule():
  if not native.available():
    raise absltest.unittest.SkipTest('The CPU kernels were not built here.')


class FuzzAttentionTest(absltest.TestCase):
  @fuzz_draws.examples
  @hypothesis.given(
    seed=fuzz_draws.SEEDS,
    lead=st.sampled_from((0, 0, 1, 3)),
    batch=st.integers(1, 3),
    places=st.tuples(PLACES, PLACES),
    heads=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    features=st.tuples(FEATURES, FEATURES),
    query=st.sampled_from(attention.ORDERS[:2]),
    key=st.sampled_from(attention.ORDERS),
    value=st.sampled_from(attention.ORDERS[:2]),
    out=st.sampled_from(attention.ORDERS[:2]),
    masked=MASKED,
    causal=st.booleans(),
    window=st.one_of(
      st.none(), st.tuples(st.integers(0, 40), st.integers(0, 40))
    ),
    types=st.sampled_from(
      ((np.float32, np.float32), (jnp.bfloat16, np.float32))
      + ((jnp.bfloat16, jnp.bfloat16), (np.float32, jnp.bfloat16))
    ),
    has=st.sets(st.sampled_from(HAS)),
    codes=st.booleans(),
    layers=st.sampled_from((0, 0, 2)),
    bf16=st.booleans(),
  )
  def test_attention(
    self,
    seed,
    lead,
    batch,
    places,
    heads,
    features,
    types,
    has,
    codes,
    layers,
    bf16,
    **form,
  ):
    form = attention.Form(scale=features[0] ** -0.5, **form)
    draw = oracle.Draw(
      seed,
      lead=lead,
      sizes=(batch, *places, *heads, *features),
      form=form,
      types=types,
      has=has,
      codes=codes,
      layers=layers,
    )
    found = draw.on_paths(jnp.bfloat16 if bf16 else jnp.float32)
    expected = draw.expected()
    most = np.abs(np.float64(draw.operands.value)).max()
    if codes:
      most *= np.abs(draw.operands.value_scale).max()
    bound = 2e-6 * most + (2**-8 * np.abs(expected) if bf16 else 0.0)
    for path, y in found.items():
      y = np.float64(y)
      self.assertEqual(y.shape, expected.shape)
      right = np.abs(y - expected) <= bound
      right |= np.isnan(y) & np.isnan(expected)
      if not right.all():
        at = tuple(np.argwhere(~right)[0])
        self.fail(
          f'{path}: {y[at]} at {at} of {y.shape}, not {expected[at]};'
          f' {np.sum(~right)} are wrong.'
        )


if __name__ == '__main__':
  absltest.main()
