"""Modules with compressed weights are called, taken apart and kept as before."""

import copy
import inspect
import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import module_nets as nets
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp

import jaxopt_compress as jc

X, call = nets.X, nets.call


def equal(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


class CallTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = nets.Net(nnx.Rngs(0))
    self.q, self.dense = nets.quantized(self.model)

  def test_is_what_it_was(self):
    self.assertIsInstance(self.q, nets.Net)
    self.assertIs(type(self.model), nets.Net)
    self.assertIs(type(self.dense), nets.Net)
    self.assertIs(type(self.q.norm), nnx.BatchNorm)
    self.assertIsInstance(self.q.layers[0], nnx.Linear)
    self.assertIsInstance(self.q.layers[0].kernel, nnx.Param)
    leaf = self.q.layers[0].kernel.get_value()
    self.assertEqual(leaf.describe(), 'int8 channel')
    self.assertIsInstance(self.model.layers[0].kernel.get_value(), jax.Array)
    self.assertEqual(type(self.q).__name__, 'Net')
    for name in ('encode', '__call__', '__init__'):
      got, want = getattr(type(self.q), name), getattr(nets.Net, name)
      self.assertEqual(inspect.signature(got), inspect.signature(want))
      self.assertEqual(got.__doc__, want.__doc__)
    self.assertLess(jc.nbytes(self.q), 0.6 * jc.nbytes(self.model))

  def test_state_changes_in_place(self):
    for n in range(1, 4):
      equal(self.q(X), self.dense(X))
      self.assertEqual(int(self.q.dropout.rngs.count[...]), n)
      equal(self.q.norm.mean[...], self.dense.norm.mean[...])
    self.assertEqual(int(self.model.dropout.rngs.count[...]), 0)

  def test_methods(self):
    self.q.eval(), self.dense.eval()
    for layers in (0, 1, 2):
      got = self.q.encode(X, layers=layers)
      equal(got, self.dense.encode(X, layers=layers))
    equal(self.q.layers[1](X), self.dense.layers[1](X))
    equal(self.q.twice(X), 2 * X)
    self.assertEqual(self.q.width, 8)
    self.assertIsInstance(self.q.make(), nets.Net)
    got, want = self.q.until(X, 0.01), self.dense.until(X, 0.01)
    self.assertGreater(want[1], 1)
    self.assertEqual(got[1], want[1])
    equal(got[0], want[0])
    for got, want in zip(
      self.q.features(X), self.dense.features(X), strict=True
    ):
      equal(got, want)

  @parameterized.parameters('index', 'operator', 'value', 'function', 'turned')
  def test_a_bare_weight(self, how):
    equal(self.q.untie(how), self.dense.untie(how))

  def test_a_base_class_is_called_and_no_array_comes_back_as_one(self):
    run = lambda m, x: m(x)['y']
    q, dense = nets.quantized(nets.Wide(nnx.Rngs(0)), run)
    got, want = q(X), dense(X)
    self.assertEqual((got['kind'], got['none']), ('wide', None))
    equal(got['y'], want['y'])
    self.assertEqual((q.calls, dense.calls), (1, 1))

  def test_an_error_leaves_it_as_it_was(self):
    with self.assertRaisesRegex(TypeError, 'dot_general'):
      self.q(jnp.ones((4, 5)))
    equal(self.q(X), self.dense(X))

  def test_what_is_shared_stays_shared(self):
    """A layer at two places, and a weight: one name takes what both are used for."""

    class Shared(nnx.Module):
      def __init__(self, rngs):
        self.a = nnx.Linear(8, 8, rngs=rngs)
        self.b = nnx.List([self.a, nnx.Linear(8, 8, rngs=rngs)])
        self.table = self.a.kernel

      def __call__(self, x):
        return self.b[1](self.b[0](self.a(x))) @ self.table[...]

    model = Shared(nnx.Rngs(0))
    uses = jc.uses(call)(model, X)
    self.assertEqual(uses['a/kernel'], uses['table'])
    self.assertEqual({u.contracted for u in uses['table']}, {(-2,)})
    q = jc.quantize(model, nets.RULES, uses)
    frozen = jc.freeze(jc.cast(q, jnp.float32))
    for m in (q, jc.materialize(q), jc.pack(q, uses, target='cpu'), frozen):
      self.assertIs(m.a, m.b[0])
      self.assertIs(m.table, m.a.kernel)
    equal(q(X), jc.materialize(q)(X))
    equal(jax.jit(jc.lift(call))(q, X), jc.materialize(q)(X))
    rules = [('table', None), *nets.RULES]
    with self.assertRaisesRegex(ValueError, 'table are one object'):
      jc.quantize(model, rules, uses)

  def test_a_module_that_is_no_tree_is_refused(self):
    class Opaque(nnx.Module, pytree=False):
      def __init__(self):
        self.kernel = nnx.Param(jnp.ones((2, 2)))

    with self.assertRaisesRegex(ValueError, 'Opaque is a module that is no'):
      jc.quantize(Opaque(), [('.*', None)])
    with self.assertRaisesRegex(ValueError, 'Opaque is a module that is no'):
      jc.uses(lambda m: 2 * m.kernel)(Opaque())


class TakenApartTest(parameterized.TestCase):
  """What Flax, JAX and Orbax do with a module, they do with a compressed one."""

  def setUp(self):
    super().setUp()
    self.q, self.dense = nets.quantized(nets.Net(nnx.Rngs(0)))
    self.q.eval(), self.dense.eval()
    self.want = self.dense(X)

  @parameterized.named_parameters(
    ('merge', lambda q: nnx.merge(*nnx.split(q))),
    ('by kinds', lambda q: nnx.merge(*nnx.split(q, nnx.Param, ...))),
    ('clone', nnx.clone),
    ('deepcopy', copy.deepcopy),
    ('copy', copy.copy),
    ('pickle', lambda q: pickle.loads(pickle.dumps(q))),
    ('tree map', lambda q: jax.tree.map(lambda x: x, q)),
    ('jit', lambda q: jax.jit(lambda q: q)(q)),
    ('quantised again', lambda q: jc.quantize(q, [('.*', None)])),
    ('in a dict', lambda q: jc.quantize({'m': q}, [('.*', None)])['m']),
  )
  def test_is_called_again(self, again):
    q = again(self.q)
    self.assertIs(type(q), type(self.q))
    equal(q(X), self.want)

  @parameterized.named_parameters(
    ('jit', lambda q: jax.jit(call)(q, X)),
    ('closed over', lambda q: jax.jit(lambda x: q(x))(X)),
    ('nnx.jit', lambda q: nnx.jit(call)(q, X)),
    ('lift', lambda q: jc.lift(call, strict=True)(q, X)),
    ('lift of a model', lambda q: jc.lift(q)(X)),
    ('jit of lift', lambda q: jax.jit(jc.lift(call, strict=True))(q, X)),
    ('vmap', lambda q: jax.vmap(q)(X[:, None])[:, 0]),
    ('nnx.vmap', lambda q: nnx.vmap(call, in_axes=(None, 0))(q, X)),
    ('nnx.remat', lambda q: nnx.remat(call)(q, X)),
    ('keyword', lambda q: jc.lift(lambda x, *, m: m(x))(X, m=q)),
    ('nested', lambda q: jc.lift(lambda t, x: t[0]['m'](x))([{'m': q}], X)),
  )
  def test_is_called_in(self, run):
    equal(run(self.q), self.want)

  def test_state_goes_and_comes(self):
    q, _ = nets.quantized(nets.Net(nnx.Rngs(1)))
    q.eval()
    nnx.update(q, nnx.state(self.q))
    equal(q(X), self.want)

  def test_orbax(self):
    where = pathlib.Path(tempfile.mkdtemp()) / 'state'
    ocp.save(where, nnx.state(self.q))
    q, _ = nets.quantized(nets.Net(nnx.Rngs(1)))
    q.eval()
    nnx.update(q, ocp.load(where, nnx.state(q)))
    equal(q(X), self.want)

  def test_is_shown(self):
    self.assertIn('QArray: int8 channel', repr(self.q))
    self.assertIn('QArray', str(nnx.state(self.q)))
    nnx.display(self.q)
    paths = ['/'.join(map(str, path)) for path, _ in nnx.iter_graph(self.q)]
    self.assertIn('layers/1/kernel', paths)

  def test_gradients_of_what_is_float(self):
    """By biases, scales and inputs; the codes are constants."""

    def is_float(path, x):
      del path
      return isinstance(x, nnx.Param) and not jc.is_compressed(x.get_value())

    def loss(model, x):
      return jnp.sum(model(x) ** 2)

    by = nnx.DiffState(0, is_float)
    got = nnx.grad(loss, argnums=by)(self.q, X)
    want = nnx.grad(loss, argnums=nnx.DiffState(0, nnx.Param))(self.dense, X)
    want = dict(jc.rules.named_leaves(want))
    got = dict(jc.rules.named_leaves(got))
    self.assertLen(got, 4)
    for path, g in got.items():
      np.testing.assert_allclose(g, want[path], rtol=1e-3, atol=1e-3)

    optimizer = nnx.Optimizer(self.q, optax.sgd(1e-3), wrt=is_float)
    before = loss(self.q, X)
    optimizer.update(self.q, nnx.grad(loss, argnums=by)(self.q, X))
    self.assertLess(loss(self.q, X), before)

  def test_stacked_by_vmap_and_scanned(self):
    @nnx.vmap
    def make(key):
      return nnx.Linear(8, 8, rngs=nnx.Rngs(key))

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
      return layer(x)

    layers = make(jax.random.split(jax.random.key(0), 3))
    uses = jc.uses(run)(layers, X)
    q = jc.quantize(layers, nets.RULES, uses)
    want = run(jc.materialize(q), X)
    equal(run(q, X), want)
    equal(jc.lift(run, strict=True)(q, X), want)
    each = nnx.vmap(call, in_axes=(0, None))
    equal(each(q, X), each(jc.materialize(q), X))


if __name__ == '__main__':
  absltest.main()
