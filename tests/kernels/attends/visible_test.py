"""Masks taken apart."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from jaxopt_compress.core import jaxprs
from jaxopt_compress.core import structural
from jaxopt_compress.kernels import flow
from jaxopt_compress.kernels.attends import traced
from jaxopt_compress.kernels.attends import visible

B, T, S = 2, 5, 7
PLACE = jnp.array([3, 4])
PAD = jnp.ones((B, S), bool)


def _t():
  return jnp.arange(T)[None, :, None]


def _s():
  return jnp.arange(S)[None, None, :]


def _found(f, yes=True):
  """What masks [B or 1, T or 1, S] say."""
  g = lambda place, pad: jnp.broadcast_to(f(place, pad), (B, T, S))
  jaxpr = jax.make_jaxpr(g)(PLACE, PAD).jaxpr
  jaxpr = jaxprs.flattened(jaxpr, structural.plain_body)
  trace = traced.Trace(flow.Flow(jaxpr))
  b, t, s = layout = trace.parts.new((B, T, S))
  seen = traced.Seen(jaxpr.outvars[0], layout)
  found = list(visible.conditions(trace, seen, yes, s))
  v = visible.resolve(found, trace.parts, b, t)
  lengths = [(x.v is jaxpr.invars[0], more) for x, more in v.lengths]
  masks = [x.v.aval.shape for x, _ in v.masks]
  return v.right, v.left, lengths, masks


class VisibleTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('everything', lambda p, m: jnp.ones((1, 1, 1), bool), None, None, [], []),
    ('causal', lambda p, m: _s() <= _t(), 0, None, [], []),
    ('turned', lambda p, m: _t() >= _s(), 0, None, [], []),
    ('strictly', lambda p, m: _s() < _t() + 1, 0, None, [], []),
    ('negated', lambda p, m: ~(_s() > _t()), 0, None, [], []),
    (
      'as floats',
      lambda p, m: (_s() <= _t()).astype(float) > 0.5,
      None,
      None,
      [],
      [(1, T, S)],
    ),
    (
      'to floats and back',
      lambda p, m: (_s() <= _t()).astype(float) != 0,
      0,
      None,
      [],
      [],
    ),
    (
      'chosen',
      lambda p, m: jnp.where(_s() <= _t(), True, False),
      0,
      None,
      [],
      [],
    ),
    (
      'tril',
      lambda p, m: jnp.tril(jnp.ones((T, S), bool))[None],
      0,
      None,
      [],
      [],
    ),
    (
      'window',
      lambda p, m: (_s() <= _t() + 1) & (_s() > _t() - 3),
      1,
      2,
      [],
      [],
    ),
    ('future', lambda p, m: _s() >= _t(), None, 0, [], []),
    # No key of a query's own: the kernel knows no such number.
    ('past', lambda p, m: _s() < _t(), None, None, [], [(1, T, S)]),
    (
      'length',
      lambda p, m: _s() < p[:, None, None],
      None,
      None,
      [(True, 0)],
      [],
    ),
    (
      'place',
      lambda p, m: _s() <= p[:, None, None],
      None,
      None,
      [(True, 1)],
      [],
    ),
    (
      'padding and causal',
      lambda p, m: m[:, None] & (_s() <= _t()),
      0,
      None,
      [],
      [(B, S)],
    ),
    # The last place sees most, and others are masked.
    (
      'places that come as values',
      lambda p, m: _s() <= (p[:, None] + jnp.arange(T)[None])[..., None],
      None,
      None,
      [(False, 1)],
      [(B, T, S)],
    ),
  )
  def test_found(self, f, right, left, lengths, masks):
    self.assertEqual(_found(f), (right, left, lengths, masks))

  def test_what_is_masked(self):
    hidden = lambda p, m: (_s() > _t()) | ~m[:, None]
    self.assertEqual(_found(hidden, yes=False), (0, None, [], [(B, S)]))


if __name__ == '__main__':
  absltest.main()
