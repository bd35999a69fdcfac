"""Leaves for the kernels: one layout, one leaf type.

    PanelArray    matrices in panels of columns             CPUs
    StreamArray   the same without their zeros              CPUs
    QuadArray     convolutions that keep channels apart     CPUs
    FloatArray    kernels of convolutions as floats         CPUs
    TiledArray    pieces of rows                            GPUs and TPUs

`plan` is what they share; `portable` makes leaves for any machine of them again.
"""

from jaxopt_compress.kernels.leaves.floats import FloatArray as FloatArray
from jaxopt_compress.kernels.leaves.panels import PanelArray as PanelArray
from jaxopt_compress.kernels.leaves.quads import QuadArray as QuadArray
from jaxopt_compress.kernels.leaves.streams import StreamArray as StreamArray
from jaxopt_compress.kernels.leaves.tiled import TiledArray as TiledArray

# What `jc.pack` makes of weights for CPUs: a name for `isinstance` and annotations.
PackedArray = PanelArray | StreamArray | QuadArray | FloatArray
