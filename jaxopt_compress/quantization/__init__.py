"""Quantisation: parameters and the computation become integers."""

from jaxopt_compress.quantization import dot as dot
from jaxopt_compress.quantization import moves as moves
from jaxopt_compress.quantization.fake import fake_quantize as fake_quantize
from jaxopt_compress.quantization.fake import FakeQuant as FakeQuant
from jaxopt_compress.quantization.qarray import QArray as QArray
from jaxopt_compress.quantization.qarray import QDotArray as QDotArray
from jaxopt_compress.quantization.schemes import quantize as quantize
from jaxopt_compress.quantization.schemes import Scheme as Scheme
from jaxopt_compress.quantization.schemes import W4A16 as W4A16
from jaxopt_compress.quantization.schemes import W8A8 as W8A8
from jaxopt_compress.quantization.schemes import W8A16 as W8A16
