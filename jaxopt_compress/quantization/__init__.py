"""Quantisation: parameters and the computation become integers."""

from jaxopt_compress.quantization import operations as operations
from jaxopt_compress.quantization import quantize as quantize
from jaxopt_compress.quantization import ranges as ranges
from jaxopt_compress.quantization import schemes as schemes
from jaxopt_compress.quantization import sensitivity as sensitivity
from jaxopt_compress.quantization.agreement import Agreement as Agreement
from jaxopt_compress.quantization.agreement import compare as compare
from jaxopt_compress.quantization.cache import QCache as QCache
from jaxopt_compress.quantization.cache import quantize_cache as quantize_cache
from jaxopt_compress.quantization.costs import Costs as Costs
from jaxopt_compress.quantization.qarray import QArray as QArray
from jaxopt_compress.quantization.qarray import QDotArray as QDotArray
from jaxopt_compress.quantization.schemes import FP8 as FP8
from jaxopt_compress.quantization.schemes import FP8_DYNAMIC as FP8_DYNAMIC
from jaxopt_compress.quantization.schemes import MXFP4 as MXFP4
from jaxopt_compress.quantization.schemes import MXFP6 as MXFP6
from jaxopt_compress.quantization.schemes import MXFP8 as MXFP8
from jaxopt_compress.quantization.schemes import MXINT8 as MXINT8
from jaxopt_compress.quantization.schemes import NF4 as NF4
from jaxopt_compress.quantization.schemes import NVFP4 as NVFP4
from jaxopt_compress.quantization.schemes import Scheme as Scheme
from jaxopt_compress.quantization.schemes import W2A16 as W2A16
from jaxopt_compress.quantization.schemes import W4A4 as W4A4
from jaxopt_compress.quantization.schemes import W4A8 as W4A8
from jaxopt_compress.quantization.schemes import W4A16 as W4A16
from jaxopt_compress.quantization.schemes import W8A8 as W8A8
from jaxopt_compress.quantization.schemes import W8A16 as W8A16
from jaxopt_compress.quantization.scoped import (
  quantize_activations as quantize_activations,
)
from jaxopt_compress.quantization.spec import Spec as Spec
from jaxopt_compress.quantization.trained import FakeQuant as FakeQuant
from jaxopt_compress.quantization.training import fake_quantize as fake_quantize

operations.register()
