"""Kernels: products with compressed weights that are faster than dense ones."""

from jaxopt_compress.kernels import rules
from jaxopt_compress.kernels.choose import tune as tune
from jaxopt_compress.kernels.leaves import PackedArray as PackedArray
from jaxopt_compress.kernels.leaves import TiledArray as TiledArray
from jaxopt_compress.kernels.pack import pack as pack
from jaxopt_compress.kernels.pack import packable as packable
from jaxopt_compress.kernels.pack import unpack as unpack
from jaxopt_compress.kernels.scores import attention as attention

rules.register()
