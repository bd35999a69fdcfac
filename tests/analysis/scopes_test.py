"""Operations replaced by where they are, against the model written out."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
import in_out
import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.analysis import scopes
from jaxopt_compress.core import lift

_RNG = np.random.default_rng(0)
SCORES = r'.*scores/dot_general'


def _rand(*shape):
  return jnp.asarray(_RNG.normal(size=shape).astype(np.float32))


W, X = _rand(6, 6), _rand(8, 6)


def _double(primitive, operands, params):
  return 2 * primitive.bind(*operands, **params)


def _block(w, x):
  """tanh(x w) + c (x w) w', with `c` what the handler multiplies by."""
  with jax.named_scope('scores'):
    y = x @ w
  return jnp.tanh(x @ w) + y @ w.T


def _want(w, x, c=2.0):
  return jnp.tanh(x @ w) + c * (x @ w) @ w.T


def _jit(w, x):
  return jax.jit(_block)(w, x)


def _remat(w, x):
  return jax.checkpoint(_block)(w, x)


def _cond(w, x):
  return lax.cond(x[0, 0] < 100, lambda: _block(w, x), lambda: x)


def _custom_jvp(w, x):
  f = jax.custom_jvp(_block)
  f.defjvp(lambda primals, tangents: (f(*primals), tangents[1]))
  return f(w, x)


def _custom_vjp(w, x):
  f = jax.custom_vjp(_block)
  f.defvjp(lambda w, x: (_block(w, x), (w, x)), lambda r, g: r)
  return f(w, x)


def _shard_map(w, x):
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('d',))
  return jax.shard_map(
    _block, mesh=mesh, in_specs=(P(), P('d')), out_specs=P('d')
  )(w, x)


def _scan(w, x):
  body = lambda h, _: (_block(w, h), None)
  return lax.scan(body, x, None, length=1)[0]


def _while(w, x):
  turn = lambda c: (c[0] + 1, _block(w, c[1]))
  return lax.while_loop(lambda c: c[0] < 1, turn, (0, x))[1]


STRUCTURES = dict(
  plain=_block,
  jit=_jit,
  remat=_remat,
  cond=_cond,
  custom_jvp=_custom_jvp,
  custom_vjp=_custom_vjp,
  shard_map=_shard_map,
  scan=_scan,
  **{'while': _while},
)
_NAMED = [dict(testcase_name=name, f=f) for name, f in STRUCTURES.items()]


def _close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class StructureTest(parameterized.TestCase):
  @parameterized.named_parameters(_NAMED)
  def test_every_structure_is_entered(self, f):
    """Under no transform, jit, and lift from outside."""
    g = scopes.at_scopes(f, [(SCORES, _double)])
    _close(g(W, X), _want(W, X))
    _close(jax.jit(g)(W, X), _want(W, X))
    w = jc.quantize({'w': W}, [('w', jc.W8A16)], uses=in_out.IN_OUT)['w']
    _close(jax.jit(jc.lift(g))(w, X), _want(w.materialize(), X))

  @parameterized.named_parameters(_NAMED)
  def test_vmap_and_scan_around(self, f):
    g = scopes.at_scopes(f, [(SCORES, _double)])
    xs = _rand(3, 8, 6)
    want = jnp.stack([_want(W, x) for x in xs])
    _close(jax.vmap(g, (None, 0))(W, xs), want)
    _close(lax.scan(lambda c, x: (c, g(W, x)), 0, xs)[1], want)

  @parameterized.named_parameters(
    n for n in _NAMED if n['f'] not in (_custom_jvp, _custom_vjp, _while)
  )
  def test_derivatives_of_the_handler(self, f):
    g = scopes.at_scopes(f, [(SCORES, _double)])
    loss = lambda f: lambda w: jnp.sum(jnp.sin(f(w, X)))
    _close(jax.grad(loss(g))(W), jax.grad(loss(_want))(W))

  def test_derivatives_of_the_model_stay(self):
    """Around a handler, and where none is inside."""
    g = scopes.at_scopes(_custom_vjp, [(SCORES, _double)])
    y, pull = jax.vjp(g, W, X)
    _close(y, _want(W, X))
    jax.tree.map(_close, pull(y), (W, X))  # not a derivative at all

    def f(w, x):
      with jax.named_scope('scores'):
        y = x @ w
      return _custom_vjp(w, y)

    both = scopes.at_scopes(f, [('scores/dot_general', _double)])
    _close(jax.vjp(both, W, X)[1](X)[1], 2 * (2 * X @ W) @ W.T)

  @parameterized.parameters('custom_vjp', 'custom_jvp', 'remat', 'jit')
  def test_derivatives_know_the_scope_around_them(self, how):
    """They evaluate a body again, when the rest has been evaluated."""

    def f(w, x):
      with jax.named_scope('a'):
        return STRUCTURES[how](w, x)

    g = jax.jit(scopes.at_scopes(f, [('a/scores/dot_general', _double)]))
    y, _ = jax.vjp(g, W, X)
    _close(y, _want(W, X))

  def test_untouched_programs_are_as_they_were(self):
    f = lambda w, x: _block(w, lax.scan(lambda h, _: (h @ w, h), x, None, 3)[0])
    g = scopes.at_scopes(f, [('scores/dot_general', None)])
    self.assertEqual(
      str(jax.make_jaxpr(f)(W, X)).count('scan'),
      str(jax.make_jaxpr(g)(W, X)).count('scan'),
    )
    np.testing.assert_array_equal(jax.jit(f)(W, X), jax.jit(g)(W, X))

  def test_handlers_that_give_leaves(self):
    """What a handler stores in codes stays so until something cannot use it."""

    def store(primitive, operands, params):
      y = primitive.bind(*operands, **params)
      return jc.quantize({'y': y}, [('y', jc.W8A16)], uses=in_out.IN_OUT)['y']

    def f(w, x):
      with jax.named_scope('keys'):
        k = x @ w
      return x @ k.T

    g = scopes.at_scopes(f, [('keys/dot_general', store)])
    k = jc.quantize({'y': X @ W}, [('y', jc.W8A16)], uses=in_out.IN_OUT)[
      'y'
    ].materialize()
    _close(jax.jit(g)(W, X), X @ k.T)


class PathTest(parameterized.TestCase):
  def test_names_are_those_outside_and_inside(self):
    def layer(h, w):
      with jax.named_scope('layer'):
        return jax.checkpoint(jnp.tanh)(h @ w), None

    @jax.jit
    def head(h):
      with jax.named_scope('head'):
        return h @ W

    def f(ws, x):
      with jax.named_scope('stack'):
        h = lax.scan(layer, x, ws)[0]
        h = lax.cond(True, head, lambda h: h, h)
      return head(h)

    got = scopes.paths(f)(_rand(3, 6, 6), X)
    self.assertEqual(
      [p for p in got if p.endswith(('dot_general', 'tanh'))],
      [
        'stack/layer/dot_general',
        'stack/layer/tanh',
        'stack/head/dot_general',
        'head/dot_general',
      ],
    )

  @parameterized.parameters('jit', 'remat', 'scan', 'custom_vjp')
  def test_gradients_have_the_names_of_what_they_come_from(self, how):
    """No mark of a transform, no scope twice: all products are in 'a'."""

    def f(w, x):
      with jax.named_scope('a'):
        return jnp.sum(STRUCTURES[how](w, jnp.sin(x)))

    of_f = {p for p in scopes.paths(f)(W, X) if 'dot_general' in p}
    got = scopes.paths(jax.vmap(jax.grad(f), (None, 0)))(W, X[None])
    of_grad = {p for p in got if 'dot_general' in p}
    self.assertEqual(of_f, {'a/scores/dot_general', 'a/dot_general'})
    self.assertLessEqual(of_grad, of_f)

  def test_one_function_at_two_places(self):
    """Bodies that JAX shares are told apart by the scope around them."""
    product = jax.jit(lambda w, x: x @ w)

    def f(w, x):
      with jax.named_scope('a'):
        x = product(w, x)
      with jax.named_scope('b'):
        return product(w, x)

    g = scopes.at_scopes(f, [('b/dot_general', _double)])
    _close(g(W, X), 2 * X @ W @ W)
    triple = lambda p, xs, params: 3 * p.bind(*xs, **params)
    g = scopes.at_scopes(
      f, [('a/dot_general', triple), ('b/dot_general', _double)]
    )
    _close(jax.jit(g)(W, X), 6 * X @ W @ W)

  def test_linen_names_its_modules(self):
    class Block(nn.Module):
      @nn.compact
      def __call__(self, x, _):
        attn = nn.MultiHeadDotProductAttention(num_heads=2, name='attn')
        return x + attn(x), None

    class Model(nn.Module):
      @nn.compact
      def __call__(self, x):
        blocks = nn.scan(
          nn.remat(Block),
          variable_axes={'params': 0},
          split_rngs={'params': True},
          length=2,
        )
        return nn.Dense(3)(blocks(name='blocks')(x, None)[0])

    model, x = Model(), _rand(2, 5, 6)
    params = model.init(jax.random.key(0), x)
    got = scopes.paths(model.apply)(params, x)
    self.assertEqual(
      [p for p in got if p.endswith('dot_general')],
      [
        'Model/blocks/attn/query/dot_general',
        'Model/blocks/attn/key/dot_general',
        'Model/blocks/attn/value/dot_general',
        'Model/blocks/attn/...qhd,...khd->...hqk/dot_general',
        'Model/blocks/attn/...hqk,...khd->...qhd/dot_general',
        'Model/blocks/attn/out/dot_general',
        'Model/Dense_0/dot_general',
      ],
    )
    # Softmax of zero scores: every query gets the mean of the values.
    zero = lambda p, operands, params: 0 * p.bind(*operands, **params)
    g = scopes.at_scopes(
      model.apply, [(r'.*/attn/.*->\.\.\.hqk/dot_general', zero)]
    )
    h, p = np.asarray(x), params['params']
    for i in range(2):
      attn = jax.tree.map(lambda a, i=i: np.asarray(a[i]), p['blocks']['attn'])
      v = np.einsum('btk,khd->bthd', h, attn['value']['kernel'])
      v = (v + attn['value']['bias']).mean(1, keepdims=True)
      o = np.einsum('bthd,hdo->bto', v, attn['out']['kernel'])
      h = h + o + attn['out']['bias']
    want = h @ np.asarray(p['Dense_0']['kernel'])
    want = want + np.asarray(p['Dense_0']['bias'])
    np.testing.assert_allclose(
      jax.jit(g)(params, x), want, rtol=1e-4, atol=1e-4
    )

  @parameterized.parameters('decoder', 'vit')
  def test_our_models_name_their_attention(self, name):
    if name == 'decoder':
      model = models.build(
        name, vocab=11, width=8, depth=2, heads=2, remat=True
      )
      x = jnp.zeros((2, 5), jnp.int32)
    else:
      model = models.build(name, patch=4, width=8, depth=2, heads=2)
      x = jnp.zeros((2, 8, 8, 1))
    f = models.functional(model)
    apply = lambda p, x: f.apply(p, f.variables, x)[0]
    names = [
      p.split('/')[:2]
      for p in scopes.paths(apply)(f.params, x)
      if p.startswith('attention/') and p.endswith('dot_general')
    ]
    self.assertEqual(names, [['attention', 'scores'], ['attention', 'values']])


class RuleTest(parameterized.TestCase):
  def test_the_first_match_takes_it(self):
    g = scopes.at_scopes(_block, [(SCORES, None), (r'.*dot_general', _double)])
    want = jnp.tanh(2 * X @ W) + 2 * (X @ W) @ W.T
    _close(g(W, X), want)

  def test_declining(self):
    calls = []

    def decline(primitive, operands, params):
      calls.append(primitive.name)
      return lift.Dense('not today')

    _close(scopes.at_scopes(_scan, [(SCORES, decline)])(W, X), _scan(W, X))
    self.assertIn('dot_general', calls)

  def test_a_rule_that_matches_nothing(self):
    with self.assertRaisesRegex(
      ValueError, r"'score/.*' matches no operation.*scores/dot_general"
    ):
      scopes.at_scopes(_scan, [('score/dot_general', _double)])(W, X)

  def test_a_rule_behind_another(self):
    rules = [('.*', None), (SCORES, _double)]
    with self.assertRaisesRegex(ValueError, 'earlier rules take all'):
      scopes.at_scopes(_scan, rules)(W, X)

  def test_no_regular_expression(self):
    with self.assertRaisesRegex(ValueError, 'not a regular expression'):
      scopes.at_scopes(_scan, [('(', _double)])

  @parameterized.parameters(
    (lambda y: y[:1], r'\(1, 6\)'),
    (lambda y: y.astype(jnp.bfloat16), 'bfloat16'),
  )
  def test_a_handler_that_gives_something_else(self, change, message):
    wrong = lambda p, operands, params: change(p.bind(*operands, **params))
    with self.assertRaisesRegex(
      ValueError, f'handler of scores/dot_general gave.*{message}'
    ):
      scopes.at_scopes(_scan, [(SCORES, wrong)])(W, X)

  def test_flags_and_outputs_keep_their_structure(self):
    def f(w, x, *, twice):
      y = _block(w, x)
      return {'y': y + y if twice else y, 'n': 3}

    g = scopes.at_scopes(f, [(SCORES, _double)])
    got = g(W, X, twice=True)
    _close(got['y'], 2 * _want(W, X))
    self.assertEqual(got['n'], 3)


if __name__ == '__main__':
  absltest.main()
