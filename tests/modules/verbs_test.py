"""Every verb takes a module where it takes parameters."""

import pathlib
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import module_nets as nets
import numpy as np

import jaxopt_compress as jc

X, call = nets.X, nets.call


class VerbsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.model = nets.Net(nnx.Rngs(0))
    self.model.eval()
    self.uses = jc.uses(call)(self.model, X)

  def test_questions(self):
    self.assertEqual(self.uses['layers/0/kernel'][0].contracted, (-2,))
    q = jc.quantize(self.model, nets.RULES, self.uses)
    self.assertEqual(jc.uses(call)(q, X).keys(), self.uses.keys())
    met = [m for m in jc.explain(call)(q, X) if m.primitive == 'dot_general']
    self.assertLen(met, 3)
    self.assertTrue(all(m.native for m in met))
    for m in (self.model, q):
      y, stats = jc.observe(call, {'table': jc.statistics.absmax()})(m, X)
      self.assertEqual(list(stats), ['table'])
      np.testing.assert_allclose(y, call(m, X), atol=1e-5)
      self.assertNotEmpty(jc.structure(call)(m, X).groups)

  @parameterized.parameters('int8, int8 tensor static', 'int4 g4')
  def test_calibrated(self, words):
    rules = [(r'.*(kernel|table)', words), (r'.*', None)]
    ranges = {}
    if 'static' in words:
      ranges = jc.calibrate(call, self.model, rules, [X], self.uses, 'minmax')
    q = jc.quantize(self.model, rules, self.uses, ranges=ranges)
    np.testing.assert_allclose(q(X), self.model(X), atol=0.7)
    self.assertIn(words.split(',')[0], q.table.get_value().describe())

  def test_packed(self):
    q = jc.quantize(self.model, nets.RULES, self.uses)
    packed = jc.pack(q, self.uses, target='cpu')
    want = jc.materialize(q)(X)
    np.testing.assert_allclose(packed(X), want, atol=1e-4)
    self.assertIsInstance(packed.table.get_value(), jc.PackedArray)
    unpacked = jc.unpack(packed)
    self.assertIsInstance(unpacked.table.get_value(), jc.QArray)
    np.testing.assert_allclose(unpacked(X), want, atol=1e-5)

  def test_pruned(self):
    rules = [('.*kernel', jc.Sparsity(kind='n_m', n=2, m=4)), ('.*', None)]
    pruned = jc.prune(self.model, rules, self.uses)
    stored, told = jc.sparsify(pruned, uses=self.uses)
    self.assertEqual(told['layers/0/kernel'].format, '2:4')
    for m in (pruned, stored, jc.freeze(pruned)):
      self.assertIsInstance(m, nets.Net)
      np.testing.assert_allclose(m(X), jc.materialize(m)(X), atol=1e-5)

  def test_trained(self):
    comp = jc.fake_quantize(nets.RULES, self.uses)
    state = comp.init(self.model)

    def loss(model):
      return jnp.mean(comp.apply(model, state)(X) ** 2)

    by = nnx.DiffState(0, nnx.Param)
    g = nnx.grad(loss, argnums=by)(self.model)
    self.assertGreater(float(jnp.abs(g['table'].get_value()).max()), 0)
    frozen = jc.freeze(comp.apply(self.model, state))
    want = comp.apply(self.model, state)(X)
    np.testing.assert_allclose(frozen(X), want, atol=1e-5)

  def test_cast_and_adapted(self):
    q = jc.cast(jc.quantize(self.model, nets.RULES, self.uses), jnp.bfloat16)
    self.assertEqual(q.layers[0](jnp.bfloat16(X)).dtype, jnp.bfloat16)
    rules = [('table', 2), ('.*', None)]
    key = jax.random.key(1)
    adapters = jc.adapters.add_lora(self.model, rules, self.uses, key=key)
    adapted = jc.adapters.with_lora(self.model, adapters, self.uses)
    np.testing.assert_allclose(adapted(X), self.model(X), atol=1e-6)

  def test_saved_and_loaded(self):
    """Into a module as it was, whose weights the file has in codes."""
    q = jc.quantize(self.model, nets.RULES, self.uses)
    path = pathlib.Path(tempfile.mkdtemp()) / 'net'
    jc.save(path, q)
    for like in (self.model, q):
      loaded = jc.load(path, like=like)
      self.assertIs(type(loaded), type(q))
      np.testing.assert_array_equal(loaded(X), q(X))
    self.assertIs(type(self.model), nets.Net)

  def test_a_class_is_found_where_there_are_no_leaves(self):
    q = jc.quantize(self.model, nets.RULES, self.uses)
    dense = jc.materialize(q)
    jax.tree.map(lambda a, b: None, self.model, dense)
    self.assertEqual(nnx.graphdef(self.model), nnx.graphdef(dense))

  def test_flax_is_not_imported(self):
    """Where there is no module of it, its part of the room is not, either."""
    hidden = {
      f'jaxopt_compress.modules.{name}': None for name in ('dressed', 'written')
    }
    with mock.patch.dict(sys.modules, hidden):
      del sys.modules['flax.nnx']
      q = jc.quantize({'kernel': jnp.eye(2)}, [('kernel', 'int8')])
      y = jc.lift(lambda p: p['kernel'] @ jnp.eye(2))(q)
      jc.uses(lambda p: p['kernel'] + 1)(jc.materialize(jc.freeze(q)))
    np.testing.assert_allclose(y, jnp.eye(2), atol=0.01)

  def test_flax_is_imported_after_a_function_was_lifted(self):
    with mock.patch.dict(sys.modules):
      del sys.modules['flax.nnx']
      lifted, used = jc.lift(call), jc.uses(call)
    first, second = self.model.layers
    second.kernel = first.kernel
    both = used(self.model, X)['layers/0/kernel']
    self.assertLen(both, 2)
    self.model.train()
    q = jc.quantize(self.model, nets.RULES, used(self.model, X))
    before = q.norm.mean[...]
    lifted(q, X)
    self.assertTrue((q.norm.mean[...] != before).any())


if __name__ == '__main__':
  absltest.main()
