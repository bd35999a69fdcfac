"""Statistics of what weights meet, against numpy on the same data."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.core import statistics

_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(8, 6)).astype(np.float32)
LAYERS = _RNG.normal(size=(3, 6, 6)).astype(np.float32)


def _rand(*shape):
  return jnp.asarray(_RNG.normal(size=shape).astype(np.float32))


def _observed(f, statistic, w, *args):
  _, stats = jax.jit(jc.observe(f, {'w': statistic}))({'w': w}, *args)
  return stats['w']


def _close(got, want):
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-4)


def _mesh():
  return jax.sharding.Mesh(np.array(jax.devices()), ('d',))


def _hidden(ws):
  """What each layer of tanh(h w) meets."""
  h, met = X, []
  for w in ws:
    met.append(h)
    h = np.tanh(h @ w)
  return met


def _scan(p, x, wrap=lambda f: f):
  layer = wrap(lambda h, w: jnp.tanh(h @ w))
  return lax.scan(lambda h, w: (layer(h, w), None), x, p['w'])[0]


def _scan_constant(p, x):
  return lax.scan(lambda h, _: (jnp.tanh(h @ p['w']), None), x, None, 3)[0]


def _while(p, x):
  turn = lambda c: (c[0] + 1, jnp.tanh(c[1] @ p['w']))
  return lax.while_loop(lambda c: c[0] < 3, turn, (0, x))[1]


def _custom(p, x):
  @jax.custom_vjp
  def layer(w, x):
    return x @ w

  layer.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: (g, g))
  return jax.nn.relu(layer(p['w'], x))


class StructureTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('scan', _scan),
    ('remat', lambda p, x: _scan(p, x, jax.checkpoint)),
    ('jit', lambda p, x: _scan(p, x, jax.jit)),
  )
  def test_layers_of_a_scan_stay_apart(self, f):
    seen = _observed(f, jc.gram(), LAYERS, X)
    np.testing.assert_array_equal(seen.count, [8, 8, 8])
    _close(seen.state, [h.T @ h for h in _hidden(LAYERS)])

  @parameterized.named_parameters(('scan', _scan_constant), ('while', _while))
  def test_turns_of_a_loop_are_merged(self, f):
    met = np.concatenate(_hidden([LAYERS[0]] * 3))
    seen = _observed(f, jc.gram(), LAYERS[0], X)
    self.assertEqual(seen.count, 24)
    _close(seen.state, met.T @ met)
    _close(
      _observed(f, jc.minmax(), LAYERS[0], X).state, (met.min(0), met.max(0))
    )

  def test_custom_derivatives_are_entered(self):
    _close(_observed(_custom, jc.sums(), LAYERS[0], X).state, X.sum(0))

  def test_a_branch_not_taken_saw_nothing(self):
    def f(p, x, i):
      return lax.cond(i, lambda: x @ p['w'], lambda: x @ p['v'])

    params = {'w': LAYERS[0], 'v': LAYERS[1]}
    out, stats = jc.observe(f, [('w|v', jc.absmax())])(params, X, True)
    _close(out, X @ LAYERS[0])
    _close(stats['w'].state, np.abs(X).max(0))
    self.assertEqual((stats['w'].count, stats['v'].count), (8, 0))
    with self.assertRaisesRegex(ValueError, '^v saw no data'):
      jc.check_seen(stats)

  @parameterized.product(
    checked=(True, False),
    statistic=(jc.gram, jc.absmax, jc.minmax, jc.sum_squares),
  )
  def test_four_devices_see_what_one_sees(self, checked, statistic):
    def f(p, x):
      return jax.shard_map(
        lambda w, x: x @ w,
        mesh=_mesh(),
        in_specs=(P(), P('d')),
        out_specs=P('d'),
        check_vma=checked,
      )(p['w'], x)

    got = _observed(f, statistic(), LAYERS[0], X)
    want = _observed(lambda p, x: x @ p['w'], statistic(), LAYERS[0], X)
    jax.tree.map(_close, got, want)

  def test_vmap(self):
    xs = _rand(3, 8, 6)
    one = lambda x: _observed(
      lambda p, x: x @ p['w'], jc.absmax(), LAYERS[0], x
    )
    _close(jax.vmap(one)(xs).state, np.abs(xs).max(1))

  def test_two_uses_and_two_batches_are_merged(self):
    f = lambda p, x: (x @ p['w']) @ p['w']
    chosen = {'w': jc.gram()}
    stats = {}
    for x in (X[:3], X[3:]):
      stats = jc.merge_stats(
        chosen, stats, jc.observe(f, chosen)({'w': LAYERS[0]}, x)[1]
      )
    met = np.concatenate([X, X @ LAYERS[0]])
    self.assertEqual(stats['w'].count, 16)
    _close(stats['w'].state, met.T @ met)


class ProductTest(parameterized.TestCase):
  def test_contracted_entries_in_the_order_of_the_leaf(self):
    w, x = _rand(4, 3, 7), _rand(5, 3, 4)
    f = lambda p, x: jnp.einsum('bdh,hdo->bo', x, p['w'])
    _close(
      _observed(f, jc.sums(), w, x).state,
      np.asarray(x).transpose(0, 2, 1).reshape(5, 12).sum(0),
    )

  def test_through_reshape_and_transpose(self):
    w, x = _rand(2, 3, 5), _rand(4, 6)  # [out, in, in']
    f = lambda p, x: (
      x @ jnp.swapaxes(p['w'], 0, 2).swapaxes(0, 1).reshape(15, 2)
    )
    x = _rand(4, 15)
    _close(_observed(f, jc.sums(), w, x).state, x.sum(0))

  def test_experts_stay_apart(self):
    w, x = _rand(5, 4, 7), _rand(2, 5, 4)
    f = lambda p, x: jnp.einsum('beh,eho->beo', x, p['w'])
    seen = _observed(f, jc.gram(), w, x)
    _close(seen.state, np.einsum('bei,bej->eij', x, x))
    np.testing.assert_array_equal(seen.count, [2] * 5)

  @parameterized.product(
    how=(
      dict(window_strides=(1, 1), padding='SAME'),
      dict(window_strides=(2, 2), padding='VALID'),
      dict(window_strides=(1, 1), padding='SAME', rhs_dilation=(2, 2)),
      dict(
        window_strides=(1, 1), padding=((1, 2), (2, 1)), lhs_dilation=(2, 2)
      ),
    ),
    groups=(1, 2, 4),
    numbers=(('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW')),
  )
  def test_patches(self, how, groups, numbers):
    """The gram gives the output's energy: sum (patch . w)^2 = w' G w."""
    w, x = _rand(3, 3, 4 // groups, 8), _rand(2, 9, 9, 4)
    if numbers[1] == 'OIHW':
      w, x = w.transpose(3, 2, 0, 1), x.transpose(0, 3, 1, 2)
    f = lambda p, x: lax.conv_general_dilated(
      x, p['w'], **how, dimension_numbers=numbers, feature_group_count=groups
    )
    seen = _observed(f, jc.gram(), w, x)
    features = numbers[2].index('C')
    y = np.moveaxis(np.asarray(f({'w': w}, x)), features, -1)
    self.assertEqual(seen.count, y[..., 0].size * groups)
    out = numbers[1].index('O')
    flat = np.moveaxis(np.asarray(w), out, -1).reshape(-1, 8)
    # Every filter over the rows of all groups, its own among them.
    energy = np.einsum('ko,kl,lo->o', flat, seen.state, flat)
    if groups == 1:
      _close(energy, np.square(y).sum((0, 1, 2)))
    else:
      copies = [
        lax.conv_general_dilated(
          x,
          jnp.concatenate([jnp.roll(w, s * 8 // groups, out)], out),
          **how,
          dimension_numbers=numbers,
          feature_group_count=groups,
        )
        for s in range(groups)
      ]
      total = sum(
        np.roll(
          np.square(np.moveaxis(np.asarray(c), features, -1)).sum((0, 1, 2)),
          -s * 8 // groups,
        )
        for s, c in enumerate(copies)
      )
      np.testing.assert_allclose(energy, total, rtol=1e-3)

  def test_rows_of_each_expert(self):
    w, x = _rand(3, 6, 5), jnp.asarray(X)
    sizes = jnp.array([3, 0, 4])
    f = lambda p, x: lax.ragged_dot(x, p['w'], sizes)
    _, stats = jc.observe(f, {'w': jc.minmax()})({'w': w}, x)
    np.testing.assert_array_equal(stats['w'].count, [3, 0, 4])
    low, high = stats['w'].state
    _close((low[0], high[2]), (X[:3].min(0), X[3:7].max(0)))
    with self.assertRaisesRegex(ValueError, r'^w saw no data at \[\[1\]\]'):
      jc.check_seen(stats)

  def test_the_output_projection_of_attention(self):
    """Two contracted axes, which other calibrators skip."""
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    x = _rand(2, 5, 6)
    params = model.init(jax.random.key(0), x)['params']
    apply = lambda p, x: model.apply({'params': p}, x)
    chosen = {r'.*/kernel': jc.gram()}
    y, stats = jc.observe(apply, chosen)(params, x)
    self.assertEqual(stats['out/kernel'].state.shape, (6, 6))
    kernel = np.asarray(params['out']['kernel']).reshape(6, 6)
    centered = np.asarray(y) - np.asarray(params['out']['bias'])
    centered = centered.reshape(-1, 6)
    _close(
      np.einsum('ko,kl,lo->o', kernel, stats['out/kernel'].state, kernel),
      np.square(centered).sum(0),
    )


class StatisticsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('absmax', statistics.absmax(), lambda x: np.abs(x).max(0)),
    ('absmax_tensor', statistics.absmax('tensor'), lambda x: np.abs(x).max()),
    ('minmax', statistics.minmax(), lambda x: (x.min(0), x.max(0))),
    (
      'minmax_tensor',
      statistics.minmax('tensor'),
      lambda x: (x.min(), x.max()),
    ),
    ('sums', statistics.sums(), lambda x: x.sum(0)),
    ('sum_abs', statistics.sum_abs(), lambda x: np.abs(x).sum(0)),
    ('sum_squares', statistics.sum_squares(), lambda x: np.square(x).sum(0)),
    ('gram', statistics.gram(), lambda x: x.T @ x),
  )
  def test_against_numpy_in_parts_and_masked(self, statistic, want):
    mask = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)
    add = lambda s, rows: statistic.add(s, X[rows], jnp.asarray(mask[rows]))
    a = add(statistic.init(6), slice(0, 3))
    b = add(add(statistic.init(6), slice(3, 5)), slice(5, 8))
    for merged in (statistic.merge(a, b), statistic.merge(b, a)):
      jax.tree.map(
        _close, tuple(jax.tree.leaves(merged)), _leaves(want(X[mask]))
      )

  def test_nothing_to_observe(self):
    f = lambda p, i: p['table'][i]
    with self.assertRaisesRegex(ValueError, 'table meets nothing in a product'):
      jc.observe(f, {'table': jc.absmax()})(
        {'table': LAYERS[0]}, jnp.array([1])
      )

  def test_rules_are_checked(self):
    f = lambda p, x: x @ p['w']
    with self.assertRaisesRegex(ValueError, "'v'"):
      jc.observe(f, {'v': jc.absmax()})({'w': LAYERS[0]}, X)
    with self.assertRaisesRegex(ValueError, 'b'):
      jc.observe(f, [('w', jc.absmax())])({'w': LAYERS[0], 'b': X}, X)


def _leaves(x):
  return x if isinstance(x, tuple) else (x,)


if __name__ == '__main__':
  absltest.main()
