"""One screen of code for every way of keeping parameters: no layer has a name here.

What a program computes from its parameters alone is computed once; rules go by what a
weight is used for; all products then run on codes.
"""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import equinox as eqx
import frameworks
import jax
import layouts
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import report

WORDS = dict(dot='int4 g16', conv='int8', gather='int8', at_least=1)
ZOO = {
  f.__name__: f
  for f in (
    frameworks.nnx_module,
    frameworks.nnx_state,
    frameworks.linen_model,
    frameworks.linen_gru,
    frameworks.linen_scanned_on_axis_1,
    frameworks.equinox_module,
    frameworks.equinox_conv,
    frameworks.haiku_model,
    layouts.bert,
    layouts.gpt2,
    layouts.gemma,
    layouts.tunix,
    layouts.bit,
    layouts.vocoder,
  )
}
COMPUTED = 'bit', 'vocoder'  # their products read no parameter as it is


def compressed(apply, params, x):
  """Weights in codes, by the rules of their uses, and the uses."""
  uses = jc.uses(apply)(params, x)
  rules = jc.rules_for(uses, **words(uses))
  return jc.quantize(params, rules, uses), uses


def words(uses):
  """Those that have a weight."""
  met = {use.primitive for of_leaf in uses.values() for use in of_leaf}
  kinds = dict(dot='dot_general', conv='conv_general_dilated', gather='gather')
  return {
    word: value
    for word, value in WORDS.items()
    if kinds.get(word) is None or kinds[word] in met
  }


class ZooTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    # Networks of others add their biases as numpy does.
    self.enter_context(jax.numpy_rank_promotion('allow'))

  @parameterized.named_parameters((name, name) for name in ZOO)
  def test_it_is_compressed_without_a_name(self, name):
    apply, params, x = ZOO[name]()
    want = eqx.filter_jit(apply)(params, x)

    run, weights = jc.hoist(apply)(params, x)
    np.testing.assert_allclose(eqx.filter_jit(run)(weights, x), want, atol=1e-5)
    if name not in COMPUTED:
      run, weights = apply, params

    q, uses = compressed(run, weights, x)
    dense = jc.materialize(q)
    want = eqx.filter_jit(run)(dense, x)
    y = eqx.filter_jit(jc.lift(run, strict=True))(q, x)
    np.testing.assert_allclose(y, want, atol=1e-4 * float(abs(want).max()))
    self.assertLess(jc.nbytes(q), 0.6 * jc.nbytes(weights))

    packed = jc.pack(q, uses, target='cpu', rows=(1,))
    y = eqx.filter_jit(jc.lift(run))(packed, x)
    np.testing.assert_allclose(y, want, atol=1e-3 * float(abs(want).max()))

    where = pathlib.Path(tempfile.mkdtemp())
    # Functions are no part of a file: Equinox takes them apart, and puts them back.
    numbers, rest = eqx.partition(q, eqx.is_array)
    jc.save(where / 'weights', numbers)
    back = eqx.combine(jc.load(where / 'weights', like=numbers), rest)
    y = eqx.filter_jit(jc.lift(run))(back, x)
    np.testing.assert_allclose(y, want, atol=1e-4 * float(abs(want).max()))

    jc.export.save(where / 'program', jc.lift(run), packed, x)
    y = jc.export.load(where / 'program')(x)
    np.testing.assert_allclose(y, want, atol=1e-3 * float(abs(want).max()))

  @parameterized.parameters('equinox_module', 'nnx_module')
  def test_leaves_that_are_no_numbers_stay(self, name):
    """Functions and flags, or keys and counters: no verb falls over them."""
    apply, params, x = ZOO[name]()
    uses = jc.uses(apply)(params, x)
    pruned = jc.prune(params, jc.rules_for(uses, dot=0.5, at_least=1), uses)
    repr(pruned)
    stored, told = jc.sparsify(pruned, uses=uses)
    y = eqx.filter_jit(jc.lift(apply))(stored, x)
    np.testing.assert_allclose(y, apply(jc.materialize(pruned), x), atol=1e-4)
    self.assertNotIn('mlp/activation', told)

    rules = jc.rules_for(uses, dot='int8, int8 tensor static', at_least=1)
    ranges = jc.calibrate(apply, params, rules, [x], uses, 'minmax')
    q = jc.quantize(params, rules, uses, ranges=ranges)
    self.assertEqual(y.shape, jc.lift(apply)(q, x).shape)
    records = report.coverage(q, params)
    self.assertLen([r for r in records if r.compressed], len(ranges))
    self.assertGreater(min(r.error_db for r in records), 20)
    self.assertGreater(report.records.sparsity(pruned), 0.2)
    structure = jc.structure(apply)(params, x)
    jc.pruning.activations(structure, apply, params, [x])

  def test_what_is_no_array_is_not_quantised(self):
    apply, model, x = ZOO['equinox_module']()
    path = next(p for p, leaf in jc.rules.named_leaves(model) if callable(leaf))
    with self.assertRaisesRegex(ValueError, f'{path} is .*which is no array'):
      jc.quantize(
        model, [(path, 'int8'), ('.*', None)], jc.uses(apply)(model, x)
      )


if __name__ == '__main__':
  absltest.main()
