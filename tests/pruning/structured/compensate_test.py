"""What stays takes over from what goes: against numpy, and on real digits."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress.data import digits

KEY = jax.random.key(0)


def _dense(p, x):
  return jax.nn.relu(x @ p['a']) @ p['b'] + p['c']


def _conv(p, x):
  def conv(x, w):
    return lax.conv_general_dilated(
      x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  y = conv(jax.nn.relu(conv(x, p['a'])), p['b'])
  return ((y - p['c']) * 2.0).mean((1, 2))


def _scanned(p, x):
  def layer(x, p):
    return x + jax.nn.relu(x @ p['a']) @ p['b'] + p['c'], None

  return lax.scan(layer, x, p)[0]


def _heads(p, x):
  """Two keys with two queries each: o reads heads and features of them."""
  q = jnp.einsum('td,dkrh->tkrh', x, p['a'])
  k, v = (jnp.einsum('td,dkh->tkh', x, p[n]) for n in 'kv')
  weights = jax.nn.softmax(jnp.einsum('tkrh,skh->krts', q, k))
  y = jnp.einsum('krts,skh->tkrh', weights, v)
  return jnp.einsum('tkrh,krhd->td', y, p['b']) + p['c']


# {name: (fun, shapes, shape of x, group, kept)}; 'b' reads what goes, 'c' is added.
NETWORKS = {
  'dense': (
    _dense,
    {'a': (6, 8), 'b': (8, 3), 'c': (1, 3)},
    (64, 6),
    'a:-1',
    [0, 1, 3, 6],
  ),
  'conv': (
    _conv,
    {'a': (3, 3, 2, 6), 'b': (3, 3, 6, 4), 'c': (1, 1, 1, 4)},
    (8, 6, 6, 2),
    'a:-1',
    [1, 2, 5],
  ),
  'scanned': (
    _scanned,
    {'a': (2, 4, 8), 'b': (2, 8, 4), 'c': (2, 1, 4)},
    (64, 4),
    'a:-1',
    [0, 1, 3, 6],
  ),
  'scanned, each its own': (
    _scanned,
    {'a': (2, 4, 8), 'b': (2, 8, 4), 'c': (2, 1, 4)},
    (64, 4),
    'a:-1',
    [[0, 1, 3, 6], [2, 3, 4, 5]],
  ),
  'heads': (
    _heads,
    {
      'a': (6, 2, 3, 4),
      'k': (6, 2, 4),
      'v': (6, 2, 4),
      'b': (2, 3, 4, 5),
      'c': (1, 5),
    },
    (48, 6),
    'a:-2',
    [0, 2],
  ),
}


def _made(name):
  fun, shapes, shape, group, kept = NETWORKS[name]
  keys = jax.random.split(KEY, len(shapes) + 1)
  params = {
    n: jax.random.normal(k, s) / np.sqrt(max(s[-2], 2))
    for (n, s), k in zip(shapes.items(), keys, strict=False)
  }
  x = jax.random.normal(keys[-1], shape)
  plan = jc.Plan(jc.structure(fun)(params, x), {group: np.array(kept)})
  return fun, params, x, plan


def _asked(fun, params, x, statistic):
  _, stats = jc.observe(fun, {'b': statistic})(params, x)
  return stats, jc.uses(fun)(params, x)


def _error(fun, params, other, x):
  want = fun(params, x)
  return float(jnp.linalg.norm(fun(other, x) - want) / jnp.linalg.norm(want))


class CompensateTest(parameterized.TestCase):
  @parameterized.parameters(*NETWORKS)
  def test_error_falls(self, name):
    fun, params, x, plan = _made(name)
    stats, uses = _asked(fun, params, x, jc.statistics.moments())
    errors = [_error(fun, params, jc.shrink(plan, params), x)]
    for biases in (None, jc.analysis.biases(fun)(params, x)):
      new, losses = jc.pruning.compensate(plan, params, stats, uses, biases)
      errors.append(_error(fun, params, jc.shrink(plan, new), x))
      self.assertLess(losses['b'].after, losses['b'].before)
      np.testing.assert_allclose(
        _error(fun, params, plan.mask(new), x), errors[-1], rtol=1e-4
      )
    self.assertLess(errors[1], 0.95 * errors[0])
    self.assertLess(errors[2], 1.001 * errors[1])
    self.assertEqual(set(jc.pruning.readers(plan, uses)), {'b'})

  def test_is_least_squares(self):
    fun, params, x, plan = _made('dense')
    stats, uses = _asked(fun, params, x, jc.statistics.moments())
    biases = jc.analysis.biases(fun)(params, x)
    self.assertEqual(
      {w: (b.path, b.sign) for w, b in biases.items()}, {'b': ('c', 1)}
    )
    new, losses = jc.pruning.compensate(
      plan, params, stats, uses, biases, damp=0.0
    )
    small = jc.shrink(plan, new)
    h = np.float64(jax.nn.relu(x @ params['a']))
    y = h @ np.float64(params['b']) + np.float64(params['c'])
    inputs = np.c_[h[:, plan.sources['a:-1']], np.ones(len(h))]
    want, *_ = np.linalg.lstsq(inputs, y, rcond=None)
    np.testing.assert_allclose(small['b'], want[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(small['c'][0], want[-1], rtol=1e-3, atol=1e-4)
    plain = y - np.float64(params['c'])
    left = np.linalg.norm(inputs @ want - y) / np.linalg.norm(plain)
    self.assertAlmostEqual(losses['b'].after, left, places=4)

  @parameterized.parameters('dense', 'conv', 'scanned', 'heads')
  def test_what_is_there_twice_costs_nothing(self, name):
    fun, params, x, plan = _made(name)
    group = next(iter(plan.sources))
    # Each channel that goes is twice, or less, another one that stays.
    n = plan.structure.groups[group].size
    stays = plan.sources[group]
    copies = np.where(np.isin(np.arange(n), stays), np.arange(n), stays[0])
    scales = np.where(np.isin(np.arange(n), stays), 1.0, 2.0)
    axis = int(group.partition(':')[2])
    shape = [n if i - 4 == axis else 1 for i in range(4)][
      4 - params['a'].ndim :
    ]
    # A query twice as large is another softmax: heads are the same.
    scales = np.ones(n) if name == 'heads' else scales
    a = jnp.take(params['a'], copies, axis) * scales.reshape(shape)
    params = dict(params, a=a.astype(jnp.float32))
    stats, uses = _asked(fun, params, x, jc.statistics.gram())
    new, losses = jc.pruning.compensate(plan, params, stats, uses, damp=1e-7)
    self.assertGreater(losses['b'].before, 0.1)
    self.assertLess(losses['b'].after, 1e-3)
    self.assertLess(_error(fun, params, jc.shrink(plan, new), x), 1e-3)

  def test_digits(self):
    """A network of real digits: half of its hidden channels, none trained again."""
    train, test = (digits.load(split) for split in ('train', 'test'))
    images = jnp.asarray(train['image']).reshape(-1, 64)
    fun = lambda p, x: jax.nn.relu(x @ p['a'] + p['b']) @ p['c'] + p['d']
    params = _trained(fun, images, train['label'])
    held_out = jnp.asarray(test['image']).reshape(-1, 64)
    found = jc.structure(fun)(params, held_out)
    plan = jc.select(found, jc.importance(found, params), keep=0.5)
    _, stats = jc.observe(fun, {'c': jc.statistics.moments()})(params, images)
    uses, biases = (
      f(fun)(params, held_out) for f in (jc.uses, jc.analysis.biases)
    )
    new, losses = jc.pruning.compensate(plan, params, stats, uses, biases)
    before = _error(fun, params, jc.shrink(plan, params), held_out)
    after = _error(fun, params, jc.shrink(plan, new), held_out)
    self.assertLess(after, 0.6 * before)
    self.assertLess(losses['c'].after, 0.6 * losses['c'].before)

  def test_shardings_and_types_are_kept(self):
    fun, params, x, plan = _made('dense')
    mesh = jax.make_mesh((4,), ('model',))
    cut = jax.sharding.NamedSharding(mesh, jax.P('model'))
    stats, uses = _asked(fun, params, x, jc.statistics.gram())
    want, _ = jc.pruning.compensate(plan, params, stats, uses)
    b = jax.device_put(params['b'], cut)
    new, _ = jc.pruning.compensate(plan, dict(params, b=b), stats, uses)
    self.assertEqual(new['b'].sharding, cut)
    np.testing.assert_array_equal(new['b'], want['b'])
    small = jc.shrink(plan, new)
    self.assertEqual((small['b'].sharding, small['b'].shape), (cut, (4, 3)))
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    new, _ = jc.pruning.compensate(plan, half, stats, uses)
    self.assertEqual(new['b'].dtype, jnp.bfloat16)

  def test_refused(self):
    fun, params, x, plan = _made('dense')
    stats, uses = _asked(fun, params, x, jc.statistics.gram())
    bad = stats['b']._replace(state=stats['b'].state * jnp.nan)
    none = stats['b']._replace(count=jnp.zeros(()))
    q = jc.quantize(params, [('b', 'int8'), ('.*', None)], uses)
    for p, s, message in (
      (params, {}, "'b'.*have no statistics.*jc.pruning.readers"),
      (params, {'b': bad}, 'b: its gram is not finite'),
      (params, {'b': none}, 'b saw no data'),
      (
        params,
        {'b': stats['b']._replace(state=jnp.ones(8))},
        r'\(8, 8\) is exp',
      ),
      (q, stats, 'b is int8.*compensate first'),
      (
        jc.shrink(plan, params),
        stats,
        r'a is of shape \(6, 4\).* has shape \(6, 8\)',
      ),
    ):
      with self.assertRaisesRegex(ValueError, message):
        jc.pruning.compensate(plan, p, s, uses)
    same, losses = jc.pruning.compensate(plan, params, {'b': None}, uses)
    self.assertEqual(losses, {})
    np.testing.assert_array_equal(same['b'], params['b'])


def _trained(fun, images, labels):
  sizes = {'a': (64, 48), 'b': (1, 48), 'c': (48, 10), 'd': (1, 10)}
  keys = jax.random.split(KEY, 4)
  params = {
    n: jax.random.normal(k, s) / np.sqrt(s[0]) if s[0] > 1 else jnp.zeros(s)
    for (n, s), k in zip(sizes.items(), keys, strict=True)
  }

  def loss(p):
    logs = jax.nn.log_softmax(fun(p, images))
    return -jnp.take_along_axis(logs, labels[:, None], 1).mean()

  def step(p, _):
    return jax.tree.map(lambda w, g: w - 0.3 * g, p, jax.grad(loss)(p)), None

  return jax.jit(lambda p: lax.scan(step, p, None, 80)[0])(params)


if __name__ == '__main__':
  absltest.main()
