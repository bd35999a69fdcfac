"""Writes rivals.npz: what torchao and compressed-tensors make of some numbers.

    pip install torch==2.13.0 torchao==0.18.0 compressed-tensors==0.20.0
    python tests/golden/record_rivals.py

Run once, in an environment of its own; the tests read the file only.
"""

import pathlib

import numpy as np

FLOATS = ('e4m3', 'e5m2', 'e2m3', 'e3m2', 'e2m1')
RULES = ('floor', 'rceil', 'even')
# compressed-tensors by name: bits, type, symmetric, entries a scale.
COMPRESSED = {
  'mxfp8': (8, 'float', True, 32),
  'mxfp6': (6, 'float', True, 32),
  'mxfp4': (4, 'float', True, 32),
  'int4': (4, 'int', True, 128),
  'int4_asym': (4, 'int', False, 128),
  'int8': (8, 'int', True, 0),
  'int8_asym': (8, 'int', False, 0),
  'fp8': (8, 'float', True, 0),
}


def matrix(n_out=10, n_in=256, seed=0, levels=True):
  """[n_out, n_in] float32 that is nearly normal, from integers alone.

  The sum of twelve uniform integers, so the same to the bit on every machine; rows
  of standard deviation 1e-6, 1e-5, ..., 1e3 and from the start again.
  """
  draws = np.random.RandomState(seed).randint(0, 2**20, (12, n_out, n_in))
  x = (draws.sum(0) - 6 * 2**20).astype(np.float32) * np.float32(2.0**-20)
  if not levels:
    return x * np.float32(0.02)
  deviation = np.array([10.0**e for e in range(-6, 4)], np.float32)
  return x * np.resize(deviation, n_out)[:, None]


def microscaling(x):
  """torchao's MX: scales by three rules, codes by the first, 'floor'."""
  import torch
  from torchao.prototype.mx_formats import config
  from torchao.prototype.mx_formats import constants
  from torchao.prototype.mx_formats import mx_tensor

  elements = {
    'e4m3': torch.float8_e4m3fn,
    'e5m2': torch.float8_e5m2,
    'e2m3': constants.DTYPE_FP6_E2M3,
    'e3m2': constants.DTYPE_FP6_E3M2,
    'e2m1': torch.float4_e2m1fn_x2,
  }
  for name in FLOATS:
    modes = [config.ScaleCalculationMode[rule.upper()] for rule in RULES]
    found = [
      mx_tensor.to_mx(x, elements[name], 32, scaling_mode=m) for m in modes
    ]
    scales = [scale.view(torch.uint8) for scale, _ in found]
    yield f'mx_{name}.scale', torch.stack(scales)
    yield f'mx_{name}.codes', found[0][1].view(torch.uint8)


def two_levels(x):
  """torchao's NVFP4."""
  import torch
  from torchao.prototype.mx_formats import nvfp4_tensor

  shared = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().max())
  scale, codes = nvfp4_tensor.nvfp4_quantize(x, 16, shared)
  yield 'nvfp4.scale', scale.view(torch.uint8)
  yield 'nvfp4.codes', codes
  yield 'nvfp4.global', shared


def normal_float(x):
  """torchao's NF4 with double quantisation."""
  from torchao.quantization.quantize_.workflows.nf4 import nf4_tensor

  q = nf4_tensor.NF4Tensor.from_tensor(x, 64, 256)
  yield 'nf4.codes', q.quantized_data
  yield 'nf4.table', q.nf4
  yield 'nf4.scale', q.quantized_scalers
  yield 'nf4.factor', q.quantization_factor
  yield 'nf4.mean', q.scaler_mean


def compressed_tensors(x):
  """Scales, zero points and numbers of compressed-tensors."""
  from compressed_tensors.quantization import QuantizationArgs
  from compressed_tensors.quantization.lifecycle import forward
  from compressed_tensors.quantization.utils import helpers
  import torch

  for name, (bits, kind, symmetric, group) in COMPRESSED.items():
    mx = {'scale_dtype': torch.uint8, 'zp_dtype': torch.uint8}
    args = QuantizationArgs(
      num_bits=bits,
      type=kind,
      symmetric=symmetric,
      strategy='group' if group else 'channel',
      group_size=group or None,
      **(mx if name.startswith('mx') else {}),
    )
    groups = x.unflatten(-1, (-1, group or x.shape[-1]))
    scale, zero = helpers.calculate_qparams(
      groups.amin(-1), groups.amax(-1), args
    )
    yield f'{name}.scale', scale
    if name.startswith('mx'):
      continue  # its rule is what differs from torchao's
    if not symmetric:
      yield f'{name}.zero', zero
    numbers = forward.quantize(x, scale, None if symmetric else zero, args)
    small = torch.int8 if kind == 'int' else torch.float8_e4m3fn
    yield f'{name}.numbers', numbers.to(small).view(torch.uint8)


def main():
  import torch

  tensor = lambda *args, **kwargs: torch.from_numpy(matrix(*args, **kwargs))
  levels = tensor()
  found = {
    **dict(microscaling(levels)),
    **dict(two_levels(tensor(levels=False))),
    **dict(normal_float(tensor(64, levels=False))),
    **dict(compressed_tensors(levels)),
  }
  path = pathlib.Path(__file__).with_name('rivals.npz')
  np.savez_compressed(path, **{k: x.numpy() for k, x in found.items()})


if __name__ == '__main__':
  main()
