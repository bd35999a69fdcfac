"""Kernels for GPU (Triton) and TPU (Mosaic): products with compressed weights.

    weight_only  y = sum_g scale_g * (x_g @ (codes_g - zero_g))    W4A16, W8A16
    dynamic      y = scale_x * scale_w * ((codes_x - zero_x) @ codes_w) + b   W8A8

Each module has three functions of arrays: `lay_out` makes the layout that the
kernel reads, once; `restore` undoes it; `matmul` multiplies one matrix x [m, k].
Batches are a `jax.vmap`. No derivatives: the caller gives them.

The rest says how: `layout` cuts k into pieces, `tiles` chooses blocks from shapes,
`contract` is the one loop over k that all kernels share.

On an H100, `launch/bench/pallas.py` has timed them; the README has the figures. On
TPUs nobody has: there they are interpreted and lowered by the tests alone.
"""

from jaxopt_compress.kernels.pallas import dynamic as dynamic
from jaxopt_compress.kernels.pallas import weight_only as weight_only
