"""The ViT: its shapes, its attention, its positions."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import network_cases
import numpy as np

import jaxopt_compress as jc
from jaxopt_compress import models
from jaxopt_compress.models import vit


class VitTest(parameterized.TestCase):
  def test_intermediates(self):
    got = network_cases.shapes('vit', width=8, depth=1, heads=2)
    want = dict(
      stem=(16, 8),
      attention0=(2, 16, 16),
      block0=(16, 8),
      features=(8,),
      y=(10,),
    )
    self.assertEqual(got, want)

  # The stem and its bias, a norm, and the head.
  @parameterized.parameters(
    (dict(width=8, depth=0), 4 * 8 + 8 + 16 + 8 * 10 + 10),
  )
  def test_num_params(self, kwargs, want):
    self.assertEqual(network_cases.num_params('vit', **kwargs), want)

  def test_attention_is_a_distribution(self):
    f = models.functional(models.build('vit', width=8, depth=1, heads=2))
    _, out, _ = jax.jit(f.apply)(f.params, f.variables, network_cases.IMAGES)
    np.testing.assert_allclose(out['attention0'].sum(-1), 1.0, atol=1e-6)

  def test_some_heads_are_gone(self):
    kwargs = dict(width=16, depth=2, heads=4)
    f = models.functional(models.build('vit', **kwargs))
    fun = jax.jit(lambda p, x: f.apply(p, {}, x)[0])
    structure = jc.structure(fun)(f.params, network_cases.IMAGES)
    fixed = [
      n
      for n, g in structure.free.items()
      if g.fixed and n not in structure.layers
    ]
    # The size of a query is what tells how many heads there are.
    self.assertEqual(fixed, [f'blocks/{i}/attn/k/kernel:-1.1' for i in (0, 1)])
    keep = {
      'blocks/0/attn/k/kernel:-1': [1, 2, 3],
      'blocks/0/attn/out/kernel:-2': [0, 3],
      'blocks/1/down/kernel:-2': [5, 7, 11],
    }
    plan = jc.Plan(structure, keep)
    want = fun(plan.mask(f.params), network_cases.IMAGES)
    got = fun(plan.apply(f.params), network_cases.IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_positions_differ(self):
    table = vit.positions(4, 4, 16)
    self.assertEqual(table.shape, (16, 16))
    self.assertLen(np.unique(np.round(table, 4), axis=0), 16)

  @parameterized.parameters(
    (dict(width=6, heads=1), 'width is 6; it must be a multiple of 4'),
    (dict(width=8, heads=3), 'of heads, which is 3'),
    (dict(patch=3), '8x8 do not divide into patches of 3x3'),
  )
  def test_errors(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      network_cases.shapes('vit', **kwargs)


if __name__ == '__main__':
  absltest.main()
