"""Counts written by hand, and XLA's own counts beside ours."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax import lax
import jax.numpy as jnp

from jaxopt_compress.analysis import flops


def ones(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def conv(x, k, strides=(1, 1), padding='SAME', **kwargs):
  return lax.conv_general_dilated(
    x, k, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **kwargs
  )


@jax.custom_vjp
def doubled(x):
  return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def sharded(x, w):
  mesh = jax.make_mesh(
    (4,), ('data',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  spec = jax.sharding.PartitionSpec
  return jax.shard_map(
    lambda x, w: x @ w,
    mesh=mesh,
    in_specs=(spec('data'), spec()),
    out_specs=spec('data'),
  )(x, w)


class FlopsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    dict(
      testcase_name='dot',
      fun=jnp.dot,
      args=(ones(5, 3), ones(3, 7)),
      expected={'dot_general': 2 * 5 * 3 * 7},
    ),
    dict(
      testcase_name='batched_int8_dot',
      fun=lambda x, w: jnp.einsum(
        'bij,bjk->bik', x, w, preferred_element_type=jnp.int32
      ),
      args=(ones(2, 5, 3, dtype=jnp.int8), ones(2, 3, 7, dtype=jnp.int8)),
      expected={'dot_general': 2 * 2 * 5 * 3 * 7},
    ),
    dict(
      testcase_name='ragged_dot',
      fun=lax.ragged_dot,
      args=(ones(6, 4), ones(3, 4, 5), ones(3, dtype=jnp.int32)),
      expected={'ragged_dot_general': 2 * 6 * 4 * 5},
    ),
    dict(
      testcase_name='conv_valid',
      fun=lambda x, k: conv(x, k, padding='VALID'),
      args=(ones(2, 8, 8, 3), ones(3, 3, 3, 4)),
      expected={'conv_general_dilated': 2 * 2 * 36 * 9 * 3 * 4},
    ),
    dict(
      # One axis: the 6 inner outputs see 3 taps, the 2 at the edge see 2.
      testcase_name='conv_same_skips_padding',
      fun=conv,
      args=(ones(1, 8, 8, 3), ones(3, 3, 3, 4)),
      expected={'conv_general_dilated': 2 * (6 * 3 + 2 * 2) ** 2 * 3 * 4},
    ),
    dict(
      testcase_name='conv_depthwise_strided',
      fun=lambda x, k: conv(x, k, (2, 2), 'VALID', feature_group_count=6),
      args=(ones(1, 9, 9, 6), ones(3, 3, 1, 6)),
      expected={'conv_general_dilated': 2 * 16 * 9 * 6},
    ),
    dict(
      testcase_name='elementwise_and_reduction',
      fun=lambda x: jnp.sum(jnp.tanh(x) * x, axis=1),
      args=(ones(4, 6),),
      expected={'tanh': 24, 'mul': 24, 'reduce_sum': 24},
    ),
    dict(
      testcase_name='moving_data_is_free',
      fun=lambda x: x.T.reshape(3, 8)[1:].astype(jnp.bfloat16),
      args=(ones(4, 6),),
      expected={},
    ),
    dict(
      testcase_name='unread_results_are_free',
      fun=lambda x: (x + 1, x @ x)[0],
      args=(ones(4, 4),),
      expected={'add': 16},
    ),
    dict(
      testcase_name='scan_of_remat',
      fun=lambda w, x: lax.scan(
        jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, w
      )[0],
      args=(ones(6, 8, 8), ones(2, 8)),
      expected={'dot_general': 6 * 2 * 2 * 8 * 8, 'tanh': 6 * 16},
    ),
    dict(
      testcase_name='cond_is_its_dearest_branch',
      fun=lambda p, x: lax.cond(p, lambda x: x @ x, lambda x: x + 1, x),
      args=(ones(dtype=bool), ones(4, 4)),
      expected={'dot_general': 2 * 64},
      remarks=('cond counted as its dearest branch',),
    ),
    dict(
      testcase_name='while_is_one_turn',
      fun=lambda x: lax.while_loop(
        lambda x: jnp.all(x < 9), lambda x: x * 2, x
      ),
      args=(ones(4),),
      expected={'mul': 4, 'lt': 4, 'reduce_and': 4},
      remarks=('while counted as one turn',),
    ),
    dict(
      testcase_name='jit_and_custom_vjp',
      fun=jax.jit(doubled),
      args=(ones(5),),
      expected={'mul': 5},
    ),
    dict(
      testcase_name='shard_map_is_all_devices',
      fun=sharded,
      args=(ones(8, 3), ones(3, 7)),
      expected={'dot_general': 2 * 8 * 3 * 7},
    ),
    dict(
      testcase_name='max_pool',
      fun=lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (2, 2), (2, 2), 'VALID'
      ),
      args=(ones(4, 6),),
      expected={'reduce_window_max': 24},
    ),
    dict(
      testcase_name='sort_and_scatter_add',
      fun=lambda x, i: jnp.zeros(9).at[i].add(jnp.sort(x)),
      args=(ones(8), ones(8, dtype=jnp.int32)),
      expected={'sort': 8 * 3},
      at_least={'scatter-add': 8},
    ),
    dict(
      testcase_name='estimates_are_said',
      fun=jnp.linalg.cholesky,
      args=(ones(3, 3),),
      expected={'cholesky': 9},
      remarks=('cholesky counted as one operation an element',),
      at_least={},
    ),
  )
  def test_counts(self, fun, args, expected, remarks=(), at_least=None):
    counted = flops.count(fun)(*args)
    if at_least is None:
      self.assertEqual(counted.by_primitive, expected)
    else:
      self.assertContainsSubset(expected, counted.by_primitive)
      self.assertContainsSubset(at_least, counted.by_primitive)
    self.assertEqual(counted.remarks, remarks)
    self.assertEqual(
      flops.flops(fun)(*args), sum(counted.by_primitive.values())
    )

  @parameterized.named_parameters(
    dict(
      testcase_name='mlp',
      fun=lambda w1, w2, x: jax.nn.gelu(x @ w1) @ w2,
      args=((64, 256), (256, 64), (16, 64)),
    ),
    dict(
      testcase_name='strided_depthwise_conv_grad',
      fun=jax.grad(
        lambda x, k: jnp.sum(
          conv(x, k, (2, 2), rhs_dilation=(2, 2), feature_group_count=8)
        ),
        argnums=(0, 1),
      ),
      args=((2, 9, 9, 8), (3, 3, 1, 16)),
    ),
    dict(
      testcase_name='conv_transpose',
      fun=lambda x, k: lax.conv_transpose(x, k, (2, 2), 'SAME'),
      args=((2, 9, 9, 8), (3, 3, 8, 16)),
    ),
    dict(
      testcase_name='attention',
      fun=lambda q, k, v: jnp.einsum(
        'bhqk,bkhd->bqhd',
        jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k)),
        v,
      ),
      args=((2, 16, 4, 32),) * 3,
    ),
    dict(
      testcase_name='cnn_with_normalisation',
      fun=lambda k, x: jnp.mean(
        jax.nn.relu(jax.nn.standardize(conv(x, k))), axis=(1, 2)
      ),
      args=((3, 3, 3, 8), (4, 8, 8, 3)),
    ),
  )
  def test_agrees_with_xla_within_two_percent(self, fun, args):
    args = [ones(*shape) for shape in args]
    cost = jax.jit(fun).lower(*args).cost_analysis()
    # XLA keeps exp, tanh and their kind apart from its 'flops'.
    theirs = cost['flops'] + cost.get('transcendentals', 0)
    ours = flops.flops(fun)(*args)
    self.assertBetween(ours / theirs, 0.98, 1.02)


if __name__ == '__main__':
  absltest.main()
