"""Kernels for GPU (Triton) and TPU (Mosaic): products with compressed weights.

    weight_only  y = sum_g scale_g * (x_g @ (codes_g - zero_g))    W4A16, W8A16
    dynamic      y = scale_x * scale_w * (codes_x @ codes_w) + b   W8A8
    n_m          y = x @ dense(values, indices)                    N of M kept

Each module has three functions of arrays: `lay_out` makes the layout that the
kernel reads, once; `restore` undoes it; `matmul` multiplies one matrix x [m, k].
Batches are a `jax.vmap`. No derivatives: the caller gives them.

The rest says how: `layout` cuts k into pieces, `tiles` chooses blocks from shapes,
`contract` is the one loop over k that all kernels share.

Nothing here has been timed: whether a kernel beats XLA on a device is for
`launch/bench_pallas.py` to say, there.
"""

from jaxopt_compress.kernels.pallas import dynamic as dynamic
from jaxopt_compress.kernels.pallas import n_m as n_m
from jaxopt_compress.kernels.pallas import weight_only as weight_only
