"""Statistics of what weights meet, against numpy on the same data."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.analysis import observe
from jaxopt_compress.analysis import statistics
from jaxopt_compress.pruning import masked

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


class _Case(parameterized.TestCase):
  """Draws the same numbers whatever ran before."""

  def setUp(self):
    super().setUp()
    global _RNG
    _RNG = np.random.default_rng(0)


class StructureTest(_Case):
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


def _grid(f, in_specs, out_specs, checked):
  """`f(w, x)` on two by two devices: 'd' for data, 'm' for the model."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ('d', 'm'))
  mapped = jax.shard_map(
    f,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=checked,
  )
  return lambda p, x: mapped(p['w'], x)


def _conv(w, x):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(
    x, w, (1, 1), 'SAME', dimension_numbers=numbers
  )


_BMK, _EKO = _rand(4, 8, 6), _rand(4, 6, 5)
_IMAGES, _KERNEL = _rand(4, 5, 5, 4), _rand(3, 3, 4, 2)
_HEADS, _OUT = _rand(8, 2, 4), _rand(2, 4, 5)

# What a device computes, and the same function on one.
_CUTS = dict(
  data=(lambda w, x: x @ w, P(), P('d'), P('d'), LAYERS[0], X, None),
  replicated=(lambda w, x: x @ w, P(), P(), P(), LAYERS[0], X, None),
  column=(
    lambda w, x: x @ w,
    P(None, 'm'),
    P('d'),
    P('d', 'm'),
    LAYERS[0],
    X,
    None,
  ),
  row=(
    lambda w, x: lax.psum(x @ w, 'm'),
    P('m'),
    P('d', 'm'),
    P('d'),
    LAYERS[0],
    X,
    lambda w, x: x @ w,
  ),
  gathered=(
    lambda w, x: x @ lax.all_gather(w, 'd', tiled=True),
    P('d'),
    P('d'),
    P('d'),
    LAYERS[0],
    X,
    lambda w, x: x @ w,
  ),
  experts=(
    lambda w, x: jnp.einsum('enk,eko->eno', x, w),
    P('m'),
    P('m', 'd'),
    P('m', 'd'),
    _EKO,
    _BMK,
    None,
  ),
  heads=(
    lambda w, x: lax.psum(jnp.einsum('bhd,hdo->bo', x, w), 'm'),
    P('m'),
    P('d', 'm'),
    P('d'),
    _OUT,
    _HEADS,
    lambda w, x: jnp.einsum('bhd,hdo->bo', x, w),
  ),
  inside_heads=(
    lambda w, x: lax.psum(x.reshape(len(x), -1) @ w.reshape(-1, 5), 'm'),
    P(None, 'm'),
    P('d', None, 'm'),
    P('d'),
    _OUT,
    _HEADS,
    lambda w, x: jnp.einsum('bhd,hdo->bo', x, w),
  ),
  channels=(
    lambda w, x: lax.psum(_conv(w, x), 'm'),
    P(None, None, 'm'),
    P('d', None, None, 'm'),
    P('d'),
    _KERNEL,
    _IMAGES,
    _conv,
  ),
  constant_of_a_loop=(
    lambda w, x: lax.while_loop(
      lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x)
    )[1],
    P(),
    P('d'),
    P('d'),
    LAYERS[0],
    X,
    None,
  ),
)


class MeshTest(_Case):
  """Data and model on a grid of devices: as on one."""

  @parameterized.product(
    name=tuple(_CUTS),
    checked=(True, False),
    statistic=(jc.gram(), jc.absmax('tensor')),
  )
  def test_cut_leaves_are_whole(self, name, checked, statistic):
    f, w_spec, x_spec, y_spec, w, x, single = _CUTS[name]
    single = single or f
    got = _observed(
      _grid(f, (w_spec, x_spec), y_spec, checked), statistic, w, x
    )
    want = _observed(lambda p, x: single(p['w'], x), statistic, w, x)
    np.testing.assert_array_equal(got.count, want.count)
    jax.tree.map(_close, got.state, want.state)

  @parameterized.parameters(True, False)
  def test_layers_on_different_devices(self, checked):
    def f(ws, x):
      x = lax.pcast(x, 'm', to='varying') if checked else x
      h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]
      return lax.psum(h, 'm')

    ws = _rand(4, 6, 6)
    g = _grid(f, (P('m'), P('d')), P('d'), checked)
    seen = _observed(g, jc.gram(), ws, X)
    met = [*_hidden(ws[:2]), *_hidden(ws[2:])]
    np.testing.assert_array_equal(seen.count, [8] * 4)
    _close(seen.state, [h.T @ h for h in met])

  def test_layers_on_different_devices_that_are_indexed(self):
    f = lambda ws, x: lax.psum(x @ ws[0] @ ws[1], 'm')
    g = _grid(f, (P('m'), P('d')), P('d'), True)
    with self.assertRaisesRegex(ValueError, 'w is cut along .* and indexed'):
      _observed(g, jc.gram(), _rand(4, 6, 6), X)

  def test_column_then_row(self):
    def f(p, x):
      return lax.psum(jnp.tanh(x @ p['w']) @ p['v'], 'm')

    params = {'w': LAYERS[0], 'v': LAYERS[1]}
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2), ('d', 'm'))
    mapped = jax.shard_map(
      f,
      mesh=mesh,
      in_specs=({'w': P(None, 'm'), 'v': P('m')}, P('d')),
      out_specs=P('d'),
    )
    stats = jax.jit(jc.observe(mapped, {'.*': jc.gram()}))(params, X)[1]
    for name, met in zip('wv', _hidden(LAYERS[:2]), strict=True):
      self.assertEqual(stats[name].count, 8)
      _close(stats[name].state, met.T @ met)

  def test_data_cut_in_ways_that_types_do_not_tell(self):
    def f(p, x, y):
      both = lambda w, x, y: (x @ w, y @ w)
      mesh = jax.sharding.Mesh(
        np.array(jax.devices()).reshape(2, 2), ('d', 'm')
      )
      specs = P('d'), P('m')
      return jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(P(), *specs),
        out_specs=specs,
        check_vma=False,
      )(p['w'], x, y)

    with self.assertRaisesRegex(ValueError, 'check_vma=True'):
      jc.observe(f, {'w': jc.gram()})({'w': LAYERS[0]}, X, X)


class ProductTest(_Case):
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

  def test_a_broadcast_weight_is_one_weight(self):
    w, x = _rand(4, 7), _rand(3, 5, 4)
    f = lambda p, x: jnp.einsum(
      'bnk,bko->bno', x, jnp.broadcast_to(p['w'], (3, 4, 7))
    )
    seen = _observed(f, jc.gram(), w, x)
    self.assertEqual(seen.count, 15)
    _close(seen.state, np.einsum('bnk,bnl->kl', x, x))

  def test_a_split_axis_that_a_product_lists_backwards(self):
    w, x = _rand(12, 5), _rand(8, 12)
    numbers = (((2, 1), (1, 0)), ((), ()))
    f = lambda p, x: lax.dot_general(
      x.reshape(8, 3, 4), p['w'].reshape(3, 4, 5), numbers
    )
    _close(_observed(f, jc.sums(), w, x).state, x.sum(0))

  def test_a_broadcast_axis_that_is_contracted(self):
    w, x = _rand(6, 5), _rand(8, 3, 6)
    f = lambda p, x: jnp.einsum(
      'bjk,jko->bo', x, jnp.broadcast_to(p['w'], (3, 6, 5))
    )
    with self.assertRaisesRegex(
      ValueError, 'w is .* 3 entries that are no axis'
    ):
      _observed(f, jc.gram(), w, x)

  def test_parts_of_what_is_contracted(self):
    f = lambda p, x: x[:, :3] @ p['w'][:3] + x[:, 3:] @ p['w'][3:]
    with self.assertRaisesRegex(ValueError, 'w is .* its axis -2: 3 .* of 6'):
      _observed(f, jc.gram(), LAYERS[0], X)

  def test_parts_of_what_is_not(self):
    """The gates of a recurrent cell, in one kernel."""
    f = lambda p, x: jnp.tanh(x @ p['w'][:, :3]) * (x @ p['w'][:, 3:])
    seen = _observed(f, jc.gram(), LAYERS[0], X)
    self.assertEqual(seen.count, 16)
    _close(seen.state, 2 * X.T @ X)

  def test_uses_that_do_not_fit_together(self):
    scan = lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p['w'])[0]
    f = lambda p, x: scan(p, x) @ p['w'][0]
    with self.assertRaisesRegex(ValueError, 'w has uses whose statistics'):
      _observed(f, jc.gram(), LAYERS, X)

  def test_the_image_of_a_convolution(self):
    with self.assertRaisesRegex(ValueError, 'w is not the weight of a conv'):
      _observed(lambda p, x: _conv(x, p['w']), jc.gram(), _IMAGES, _KERNEL)

  def test_other_leaves_stay_compressed(self):
    params = {'q': LAYERS[0], 'w': LAYERS[1]}
    params = jc.quantize(params, [('q', jc.W8A8), ('w', None)])
    f = lambda p, x: (x @ p['q']) @ p['w']
    y, stats = jax.jit(jc.observe(f, {'w': jc.sums()}))(params, X)
    _close(y, jax.jit(jc.lift(f))(params, X))
    met = jax.jit(jc.lift(lambda p, x: x @ p['q']))(params, X)
    _close(stats['w'].state, np.asarray(met).sum(0))

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

  def test_nnx(self):
    model = nnx.Sequential(
      nnx.Linear(6, 4, rngs=nnx.Rngs(0)),
      jnp.tanh,
      nnx.Linear(4, 2, rngs=nnx.Rngs(1)),
    )
    graphdef, params = nnx.split(model)
    apply = lambda p, x: nnx.merge(graphdef, p)(x)
    _, stats = jc.observe(apply, {r'.*/kernel': jc.gram()})(params, X)
    first, second = stats.values()
    _close(first.state, X.T @ X)
    kernel, bias = (
      np.asarray(model.layers[0].kernel[...]),
      model.layers[0].bias,
    )
    h = np.tanh(X @ kernel + np.asarray(bias[...])[None])
    _close(second.state, h.T @ h)

  def test_layers_of_a_scanned_linen_model(self):
    class Layer(nn.Module):
      @nn.compact
      def __call__(self, h, _):
        return jnp.tanh(nn.Dense(6, use_bias=False)(h)), None

    class Model(nn.Module):
      @nn.compact
      def __call__(self, x):
        layers = nn.scan(
          nn.remat(Layer),
          variable_axes={'params': 1},
          split_rngs={'params': True},
          length=3,
        )
        return layers(name='layers')(x, None)[0]

    model = Model()
    params = model.init(jax.random.key(0), X)
    _, stats = jax.jit(jc.observe(model.apply, {'.*': jc.gram()}))(params, X)
    (seen,) = stats.values()
    kernel = params['params']['layers']['Dense_0']['kernel']
    self.assertEqual(kernel.shape, (6, 3, 6))
    met = _hidden(np.asarray(kernel).swapaxes(0, 1))
    np.testing.assert_array_equal(seen.count, [8, 8, 8])
    _close(seen.state, [h.T @ h for h in met])

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


class StatisticsTest(_Case):
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
    with self.assertRaisesRegex(
      ValueError, 'table reaches no product, only gather at .*observe_test'
    ):
      jc.observe(f, {'table': jc.absmax()})(
        {'table': LAYERS[0]}, jnp.array([1])
      )

  def test_a_leaf_that_is_never_read(self):
    with self.assertRaisesRegex(ValueError, 'w meets nothing: .* never reads'):
      _observed(lambda p, x: x, jc.gram(), LAYERS[0], X)

  def test_other_calls_are_not_merged(self):
    f = lambda p, x: x @ p['w']
    a = jc.observe(f, {'w': jc.gram()})({'w': LAYERS[0]}, X)[1]
    b = jc.observe(f, {'w': jc.gram()})({'w': LAYERS[0][:4]}, X[:, :4])[1]
    with self.assertRaisesRegex(ValueError, 'cannot be merged'):
      jc.merge_stats({'w': jc.gram()}, a, b)
    with self.assertRaisesRegex(ValueError, 'different leaves'):
      jc.merge_stats({'w': jc.gram()}, a, {'v': b['w']})

  def test_rules_are_checked(self):
    f = lambda p, x: x @ p['w']
    with self.assertRaisesRegex(ValueError, "'v'"):
      jc.observe(f, {'v': jc.absmax()})({'w': LAYERS[0]}, X)
    with self.assertRaisesRegex(ValueError, 'b'):
      jc.observe(f, [('w', jc.absmax())])({'w': LAYERS[0], 'b': X}, X)


def _leaves(x):
  return x if isinstance(x, tuple) else (x,)


class CompressedTest(_Case):
  """Observed leaves compute as under lift, and the result is differentiable."""

  @parameterized.product(
    scheme=('int4 g3', 'int8, int8 token', 'fake', 'mask'),
    f=(_scan, 'remat', 'moved', 'gathered', 'convolved'),
  )
  def test_is_what_lift_computes(self, scheme, f):
    f, w, x = {
      'remat': (lambda p, x: _scan(p, x, jax.checkpoint), LAYERS, X),
      'moved': (
        lambda p, x: x @ p['w'].transpose(0, 2, 1).reshape(3, 6, 2, 3)[1, :, 0],
        LAYERS,
        X,
      ),
      'gathered': (
        lambda p, x: p['w'][jnp.array([2, 0])] @ p['w'].T,
        LAYERS[0],
        X,
      ),
      'convolved': (
        lambda p, x: lax.conv(x.reshape(2, 4, 3, 2), p['w'], (1, 1), 'SAME'),
        _rand(5, 4, 3, 3),
        X,
      ),
    }.get(f, (f, LAYERS, X))
    params = {'w': jnp.asarray(w)}
    uses = jc.uses(f)(params, x)

    def leaf(p):
      if scheme == 'mask':
        return {'w': masked.Masked(p['w'], p['w'] > 0)}
      if scheme != 'fake':
        return jc.quantize(p, [('w', scheme)], uses)
      return jc.fake_quantize([('w', 'W8A8')], uses).apply(p, ())

    def loss(run):
      def total(p, x):
        y, stats = run(leaf(p), x)
        return jnp.square(y).sum(), (y, stats)

      grad = (0, 1) if scheme in ('fake', 'mask') else 1
      return jax.jit(jax.value_and_grad(total, grad, has_aux=True))

    observed = loss(jc.observe(f, {'w': jc.minmax('tensor')}))(params, x)
    lifted = loss(lambda q, x: (jc.lift(f)(q, x), {}))(params, x)
    (value, (y, stats)), grads = observed
    (value_lift, (y_lift, _)), grads_lift = lifted
    _close(value, value_lift)
    _close(y, y_lift)
    jax.tree.map(_close, grads, grads_lift)
    dense = jc.observe(f, {'w': jc.minmax('tensor')})
    want = dense({'w': leaf(params)['w'].materialize()}, x)[1]['w']
    np.testing.assert_array_equal(stats['w'].count, want.count)
    # Later layers meet what was rounded before.
    np.testing.assert_allclose(stats['w'].state, want.state, atol=0.1)

  def test_over_devices(self):
    wanted = {'w': jc.minmax('tensor')}
    f = lambda p, x: _scan(p, x)
    whole = jc.observe(f, wanted)({'w': LAYERS}, X)[1]

    @jax.shard_map(
      mesh=_mesh(), in_specs=(P(), P('d')), out_specs=P(), check_vma=False
    )
    def run(p, x):
      stats = jc.observe(f, wanted)(p, x)[1]
      return observe.reduce_stats(wanted, stats, 'd')

    jax.tree.map(_close, run({'w': LAYERS}, X), whole)


if __name__ == '__main__':
  absltest.main()
