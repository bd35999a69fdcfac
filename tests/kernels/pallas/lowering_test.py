"""Every kernel lowers for GPUs and TPUs, where there are none.

Lowering makes the device's own program, Triton's or Mosaic's, and its verifier
checks it; what only the device's compiler finds is not found here.
"""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import lowering

from jaxopt_compress.kernels.pallas import dynamic
from jaxopt_compress.kernels.pallas import weight_only

_CALL = {'cuda': '__gpu$xla.gpu.triton', 'tpu': 'tpu_custom_call'}


def _of(dtype, *shape):
  return jax.ShapeDtypeStruct(shape, dtype)


def _lowered(platform, lay_out, matmul, x, *parts, batch=None):
  """The text of x @ lay_out(*parts), lowered for a platform."""
  w = jax.eval_shape(lay_out, *parts)
  if batch:
    wider = lambda a: _of(a.dtype, batch, *a.shape)
    x, w = wider(x), jax.tree.map(wider, w)
    matmul = jax.vmap(matmul)
  with lowering.device(platform):
    traced = jax.jit(matmul).trace(x, w)
    return traced.lower(lowering_platforms=(platform,)).as_text()


class LoweringTest(parameterized.TestCase):
  @parameterized.product(
    platform=['cuda', 'tpu'],
    case=[
      # m, k, n, bits, group, dtype of x, of scales, of zeros, batch
      (1, 4096, 4096, 4, 128, 'bfloat16', 'float32', None, None),
      (16, 11008, 4096, 4, 64, 'bfloat16', 'bfloat16', 'int8', None),
      (512, 4096, 11008, 4, 32, 'float32', 'float32', 'float32', None),
      (1, 4096, 4096, 8, None, 'float16', 'float32', None, None),
      (512, 4096, 4096, 8, 128, 'bfloat16', 'float32', 'int8', None),
      (7, 333, 77, 8, None, 'float32', 'float32', 'int8', None),
      (5, 300, 130, 4, 100, 'bfloat16', 'float32', None, 6),
    ],
  )
  def test_weight_only(self, platform, case):
    m, k, n, bits, group, dtype, of_scale, of_zero, batch = case
    how = dict(bits=bits, group=group)
    groups = 1 if group is None else -(-k // group)
    text = _lowered(
      platform,
      functools.partial(weight_only.lay_out, **how),
      functools.partial(weight_only.matmul, n=n, platform=platform, **how),
      _of(dtype, m, k),
      _of('int8', k, n),
      _of(of_scale, groups, n),
      of_zero and _of(of_zero, groups, n),
      batch=batch,
    )
    self.assertIn(_CALL[platform], text)

  @parameterized.product(
    platform=['cuda', 'tpu'],
    case=[
      # m, k, n, dtype of x, fused, batch
      (1, 4096, 4096, 'bfloat16', True, None),
      (8, 4096, 4096, 'float32', None, None),
      (512, 4096, 11008, 'bfloat16', None, None),
      (3, 77, 10, 'float16', None, 4),
    ],
  )
  def test_dynamic(self, platform, case):
    m, k, n, dtype, fused, batch = case
    text = _lowered(
      platform,
      dynamic.lay_out,
      lambda x, w: dynamic.matmul(
        x, w, jnp.ones(n), n=n, platform=platform, fused=fused
      ),
      _of(dtype, m, k),
      _of('int8', k, n),
      _of('float32', 1, n),
      batch=batch,
    )
    self.assertIn(_CALL[platform], text)

  def test_exports_for_tpu(self):
    """A program for TPUs can be stored; JAX does not promise so for Triton."""
    w = jax.eval_shape(
      dynamic.lay_out, _of('int8', 256, 128), _of('float32', 1, 128)
    )
    run = jax.jit(functools.partial(dynamic.matmul, n=128, platform='tpu'))
    exported = jax.export.export(run, platforms=['tpu'])(
      _of('float32', 4, 256), w
    )
    self.assertIn(_CALL['tpu'], exported.mlir_module())


if __name__ == '__main__':
  absltest.main()
