"""A weight is found wherever it is used, and values come back from there."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxopt_compress.analysis import algebra

W, X = jnp.ones((6, 6)), jnp.ones((8, 6))


class Weights(algebra.Algebra):
  """Which names of inputs reach a product, untouched on the way."""

  def __init__(self, unroll=False):
    self.unroll = unroll
    self.met = []  # (path, turns of what is around, name)
    self.decided = []

  def plain(self, aval):
    return ''

  def decide(self, x):
    self.decided.append(x)

  def layer(self, x, turn, aval):
    return x and f'{x}[{":" if turn is None else turn}]'

  def stack(self, ys, aval):
    return f'[{", ".join(ys)}]' if any(ys) else ''

  def cut(self, at, x, spec, aval):
    return x and f'{x}/{aval.shape[0]}'

  def _dot(self, at, inputs):
    self.met += [
      (at.path, tuple(turn for _, turn in at.around), x) for x in inputs
    ]

  def _same(self, at, inputs):
    return inputs

  rules = {'dot_general': _dot, 'pvary': _same, 'transpose': _same}


def _met(f, *args, unroll=False):
  """What is met by a product, of inputs called 'w' and, the others, ''."""
  asked = Weights(unroll)
  closed = jax.make_jaxpr(f)(*args)
  names = ['w'] + [''] * (len(closed.jaxpr.invars) - 1)
  outs = algebra.evaluate(asked, closed, names)
  return asked, [name for _, _, name in asked.met if name], outs


def _product(w, x):
  return x @ w


def _scan(body):
  def f(ws, x):
    return lax.scan(lambda h, w: (body(w, h), None), x, ws)[0]

  return f


def _cond(w, x):
  return lax.cond(x[0, 0] > 0, _product, lambda w, x: x, w, x)


def _custom_vjp(w, x):
  f = jax.custom_vjp(_product)
  f.defvjp(lambda w, x: (x @ w, (w, x)), lambda r, g: r)
  return f(w, x)


def _custom_jvp(w, x):
  f = jax.custom_jvp(_product)
  f.defjvp(lambda primals, tangents: (f(*primals), tangents[1]))
  return f(w, x)


def _while(w, x):
  turn = lambda c: (c[0] + 1, c[1] @ w)
  return lax.while_loop(lambda c: c[0] < 3, turn, (0, x))[1]


def _in_test(w, x):
  return lax.while_loop(lambda h: jnp.sum(h @ w) < 3, lambda h: h + 1, x)


def _carried(w, x):
  """The loop carries the weight as it is, and something that it changes."""
  turn = lambda c, _: ((c[0], c[1] @ c[0]), None)
  return lax.scan(turn, (w, x), None, 3)[0]


def _changed(w, x):
  return lax.scan(lambda w, x: (w + 1, x @ w), w, x[None])


def _sharded(body=_product):
  mesh = jax.make_mesh((4,), ('d',), axis_types=(jax.sharding.AxisType.Auto,))
  return jax.shard_map(
    body, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d')
  )


def _everything(ws, x):
  layer = jax.jit(jax.checkpoint(_cond))
  return _sharded(_scan(layer))(ws, x)


class EvaluateTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('plain', _product, W, ['w']),
    ('jit', jax.jit(_product), W, ['w']),
    ('remat', jax.checkpoint(_product), W, ['w']),
    ('custom_jvp', _custom_jvp, W, ['w']),
    ('custom_vjp', _custom_vjp, W, ['w']),
    ('cond', _cond, W, ['w']),
    ('while', _while, W, ['w']),
    ('test of a while', _in_test, W, ['w']),
    ('scan', _scan(_product), W[None], ['w[:]']),
    ('carried by a scan', _carried, W, ['w']),
    ('changed by a scan', _changed, W, []),
    ('shard_map', _sharded(), W, ['w/6']),
    ('all of them', _everything, jnp.ones((3, 6, 6)), ['w/3[:]']),
  )
  def test_a_weight_is_found(self, f, w, expected):
    _, met, _ = _met(f, w, X)
    self.assertEqual(met, expected)

  @parameterized.parameters(
    (False, ['w[0]', 'w[1]', 'w[2]']), (True, ['w[2]', 'w[1]', 'w[0]'])
  )
  def test_turn_by_turn(self, reverse, expected):
    f = lambda ws, x: lax.scan(
      lambda h, w: (h @ w, w.T), x, ws, reverse=reverse
    )
    asked, met, outs = _met(f, jnp.ones((3, 6, 6)), X, unroll=True)
    self.assertEqual(met, expected)
    # A turn's results lie where its operands lay, whichever ran first.
    self.assertEqual(outs, ['', '[w[0], w[1], w[2]]'])
    turns = [turn for _, (turn,), name in asked.met if name]
    self.assertEqual(turns, [int(name[2]) for name in met])

  def test_what_decides_is_asked(self):
    asked, _, _ = _met(
      lambda w, x: lax.cond(w > 0, lambda: x, lambda: -x), 1, X
    )
    self.assertLen(asked.decided, 1)
    asked, _, _ = _met(_while, W, X)
    self.assertLen(asked.decided, 1)

  def test_unchanged_results_of_a_loop(self):
    self.assertEqual(_met(_carried, W, X)[2], ['w', ''])

  def test_a_rule_comes_before_what_is_inside(self):
    class Closed(Weights):
      rules = {**Weights.rules, 'scan': lambda *_: None}

    asked = Closed()
    closed = jax.make_jaxpr(_scan(_product))(W[None], X)
    self.assertEqual(algebra.evaluate(asked, closed, ['w', '']), [''])
    self.assertEqual(asked.met, [])


class FromWeights(algebra.Algebra):
  """Whether a value follows from weights and constants alone."""

  def plain(self, aval):
    return False

  def constant(self, x):
    return True

  def unknown(self, at, inputs):
    return [all(inputs)] * len(at.eqn.outvars)

  def layer(self, x, turn, aval):
    return x

  def stack(self, ys, aval):
    return all(ys)

  def cut(self, at, x, spec, aval):
    return x

  def assemble(self, at, y, spec, aval):
    return y


class ConservativeTest(parameterized.TestCase):
  """What a question does not say is not known, and never taken for known."""

  @parameterized.named_parameters(
    dict(
      testcase_name='of weights', f=lambda w, x: jnp.sin(w) + 1, want=[True]
    ),
    dict(testcase_name='of data', f=lambda w, x: w + x[0, 0], want=[False]),
    dict(
      testcase_name='results of a scan, but not its carry',
      f=lambda w, x: lax.scan(lambda c, v: (c * v[0, 0], v * 2), 0.0, w[None]),
      want=[False, True],
    ),
    dict(
      testcase_name='a cond, which data may decide',
      f=lambda w, x: lax.cond(x[0, 0] > 0, lambda: w, lambda: -w),
      want=[False],
    ),
    dict(
      testcase_name='on devices',
      f=lambda w, x: _sharded(lambda w, x: jnp.tile(w[:2], (1, 2)))(w, x),
      want=[True],
    ),
  )
  def test_follows_from_weights(self, f, want):
    closed = jax.make_jaxpr(f)(W, X)
    got = algebra.evaluate(FromWeights(), closed, [True, False])
    self.assertEqual(got, want)


if __name__ == '__main__':
  absltest.main()
