"""What each kind of product says of the entries that a weight meets."""

from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn
from flax import nnx
import in_out
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import observing

import jaxopt_compress as jc


class ProductTest(observing.Case):
  def test_contracted_entries_in_the_order_of_the_leaf(self):
    w, x = observing.rand(4, 3, 7), observing.rand(5, 3, 4)
    f = lambda p, x: jnp.einsum('bdh,hdo->bo', x, p['w'])
    observing.close(
      observing.observed(f, jc.statistics.sums(), w, x).state,
      np.asarray(x).transpose(0, 2, 1).reshape(5, 12).sum(0),
    )

  def test_through_reshape_and_transpose(self):
    w, x = observing.rand(2, 3, 5), observing.rand(4, 6)  # [out, in, in']
    f = lambda p, x: (
      x @ jnp.swapaxes(p['w'], 0, 2).swapaxes(0, 1).reshape(15, 2)
    )
    x = observing.rand(4, 15)
    observing.close(
      observing.observed(f, jc.statistics.sums(), w, x).state, x.sum(0)
    )

  def test_experts_stay_apart(self):
    w, x = observing.rand(5, 4, 7), observing.rand(2, 5, 4)
    f = lambda p, x: jnp.einsum('beh,eho->beo', x, p['w'])
    seen = observing.observed(f, jc.statistics.gram(), w, x)
    observing.close(seen.state, np.einsum('bei,bej->eij', x, x))
    np.testing.assert_array_equal(seen.count, [2] * 5)

  def test_a_broadcast_weight_is_one_weight(self):
    w, x = observing.rand(4, 7), observing.rand(3, 5, 4)
    f = lambda p, x: jnp.einsum(
      'bnk,bko->bno', x, jnp.broadcast_to(p['w'], (3, 4, 7))
    )
    seen = observing.observed(f, jc.statistics.gram(), w, x)
    self.assertEqual(seen.count, 15)
    observing.close(seen.state, np.einsum('bnk,bnl->kl', x, x))

  def test_a_split_axis_that_a_product_lists_backwards(self):
    w, x = observing.rand(12, 5), observing.rand(8, 12)
    numbers = (((2, 1), (1, 0)), ((), ()))
    f = lambda p, x: lax.dot_general(
      x.reshape(8, 3, 4), p['w'].reshape(3, 4, 5), numbers
    )
    observing.close(
      observing.observed(f, jc.statistics.sums(), w, x).state, x.sum(0)
    )

  def test_a_broadcast_axis_that_is_contracted(self):
    w, x = observing.rand(6, 5), observing.rand(8, 3, 6)
    f = lambda p, x: jnp.einsum(
      'bjk,jko->bo', x, jnp.broadcast_to(p['w'], (3, 6, 5))
    )
    with self.assertRaisesRegex(
      ValueError, 'w is .* 3 entries that are no axis'
    ):
      observing.observed(f, jc.statistics.gram(), w, x)

  def test_parts_of_what_is_contracted(self):
    f = lambda p, x: x[:, :3] @ p['w'][:3] + x[:, 3:] @ p['w'][3:]
    with self.assertRaisesRegex(ValueError, 'w is .* its axis -2: 3 .* of 6'):
      observing.observed(
        f, jc.statistics.gram(), observing.LAYERS[0], observing.X
      )

  def test_parts_of_what_is_not(self):
    """The gates of a recurrent cell, in one kernel."""
    f = lambda p, x: jnp.tanh(x @ p['w'][:, :3]) * (x @ p['w'][:, 3:])
    seen = observing.observed(
      f, jc.statistics.gram(), observing.LAYERS[0], observing.X
    )
    self.assertEqual(seen.count, 16)
    observing.close(seen.state, 2 * observing.X.T @ observing.X)

  def test_uses_that_do_not_fit_together(self):
    scan = lambda p, x: lax.scan(lambda h, w: (h @ w, None), x, p['w'])[0]
    f = lambda p, x: scan(p, x) @ p['w'][0]
    with self.assertRaisesRegex(ValueError, 'w has uses whose statistics'):
      observing.observed(f, jc.statistics.gram(), observing.LAYERS, observing.X)

  def test_the_image_of_a_convolution(self):
    image, kernel = observing.rand(4, 5, 5, 4), observing.rand(3, 3, 4, 2)
    with self.assertRaisesRegex(ValueError, 'w is not the weight of a conv'):
      observing.observed(
        lambda p, x: observing.conv(x, p['w']),
        jc.statistics.gram(),
        image,
        kernel,
      )

  def test_other_leaves_stay_compressed(self):
    params = {'q': observing.LAYERS[0], 'w': observing.LAYERS[1]}
    params = jc.quantize(
      params, [('q', jc.W8A8), ('w', None)], uses=in_out.IN_OUT
    )
    f = lambda p, x: (x @ p['q']) @ p['w']
    y, stats = jax.jit(jc.observe(f, {'w': jc.statistics.sums()}))(
      params, observing.X
    )
    observing.close(y, jax.jit(jc.lift(f))(params, observing.X))
    met = jax.jit(jc.lift(lambda p, x: x @ p['q']))(params, observing.X)
    observing.close(stats['w'].state, np.asarray(met).sum(0))

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
    w, x = observing.rand(3, 3, 4 // groups, 8), observing.rand(2, 9, 9, 4)
    if numbers[1] == 'OIHW':
      w, x = w.transpose(3, 2, 0, 1), x.transpose(0, 3, 1, 2)
    f = lambda p, x: lax.conv_general_dilated(
      x, p['w'], **how, dimension_numbers=numbers, feature_group_count=groups
    )
    seen = observing.observed(f, jc.statistics.gram(), w, x)
    features = numbers[2].index('C')
    y = np.moveaxis(np.asarray(f({'w': w}, x)), features, -1)
    self.assertEqual(seen.count, y[..., 0].size * groups)
    out = numbers[1].index('O')
    flat = np.moveaxis(np.asarray(w), out, -1).reshape(-1, 8)
    # Every filter over the rows of all groups, its own among them.
    energy = np.einsum('ko,kl,lo->o', flat, seen.state, flat)
    if groups == 1:
      observing.close(energy, np.square(y).sum((0, 1, 2)))
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
    w, x = observing.rand(3, 6, 5), jnp.asarray(observing.X)
    sizes = jnp.array([3, 0, 4])
    f = lambda p, x: lax.ragged_dot(x, p['w'], sizes)
    _, stats = jc.observe(f, {'w': jc.statistics.minmax()})({'w': w}, x)
    np.testing.assert_array_equal(stats['w'].count, [3, 0, 4])
    low, high = stats['w'].state
    observing.close(
      (low[0], high[2]), (observing.X[:3].min(0), observing.X[3:7].max(0))
    )
    with self.assertRaisesRegex(ValueError, r'^w saw no data at \[\[1\]\]'):
      jc.analysis.check_seen(stats)

  def test_nnx(self):
    model = nnx.Sequential(
      nnx.Linear(6, 4, rngs=nnx.Rngs(0)),
      jnp.tanh,
      nnx.Linear(4, 2, rngs=nnx.Rngs(1)),
    )
    graphdef, params = nnx.split(model)
    apply = lambda p, x: nnx.merge(graphdef, p)(x)
    _, stats = jc.observe(apply, {r'.*/kernel': jc.statistics.gram()})(
      params, observing.X
    )
    first, second = stats.values()
    observing.close(first.state, observing.X.T @ observing.X)
    kernel, bias = (
      np.asarray(model.layers[0].kernel[...]),
      model.layers[0].bias,
    )
    h = np.tanh(observing.X @ kernel + np.asarray(bias[...])[None])
    observing.close(second.state, h.T @ h)

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
    params = model.init(jax.random.key(0), observing.X)
    _, stats = jax.jit(jc.observe(model.apply, {'.*': jc.statistics.gram()}))(
      params, observing.X
    )
    (seen,) = stats.values()
    kernel = params['params']['layers']['Dense_0']['kernel']
    self.assertEqual(kernel.shape, (6, 3, 6))
    met = observing.hidden(np.asarray(kernel).swapaxes(0, 1))
    np.testing.assert_array_equal(seen.count, [8, 8, 8])
    observing.close(seen.state, [h.T @ h for h in met])

  def test_the_output_projection_of_attention(self):
    """Two contracted axes, which other calibrators skip."""
    model = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=6)
    x = observing.rand(2, 5, 6)
    params = model.init(jax.random.key(0), x)['params']
    apply = lambda p, x: model.apply({'params': p}, x)
    chosen = {r'.*/kernel': jc.statistics.gram()}
    y, stats = jc.observe(apply, chosen)(params, x)
    self.assertEqual(stats['out/kernel'].state.shape, (6, 6))
    kernel = np.asarray(params['out']['kernel']).reshape(6, 6)
    centered = np.asarray(y) - np.asarray(params['out']['bias'])
    centered = centered.reshape(-1, 6)
    observing.close(
      np.einsum('ko,kl,lo->o', kernel, stats['out/kernel'].state, kernel),
      np.square(centered).sum(0),
    )


if __name__ == '__main__':
  absltest.main()
