"""Quantise, prune, distil and distribute JAX networks.

import jaxopt_compress as jc

qparams = jc.quantize(params, [(r'.*/kernel', jc.W8A8), (r'.*', None)])
y = jax.jit(jc.lift(apply))(qparams, x)
"""

from jaxopt_compress import adapters as adapters
from jaxopt_compress import calibration as calibration
from jaxopt_compress import distillation as distillation
from jaxopt_compress import kernels as kernels
from jaxopt_compress import parallel as parallel
from jaxopt_compress import pruning as pruning
from jaxopt_compress import quantization as quantization
from jaxopt_compress.adapters import add_lora as add_lora
from jaxopt_compress.adapters import LoRA as LoRA
from jaxopt_compress.adapters import merge_lora as merge_lora
from jaxopt_compress.adapters import with_lora as with_lora
from jaxopt_compress.analysis.biases import biases as biases
from jaxopt_compress.analysis.explain import explain as explain
from jaxopt_compress.analysis.features import feature_names as feature_names
from jaxopt_compress.analysis.features import features as features
from jaxopt_compress.analysis.freedoms import rescalings as rescalings
from jaxopt_compress.analysis.observe import check_seen as check_seen
from jaxopt_compress.analysis.observe import merge_stats as merge_stats
from jaxopt_compress.analysis.observe import observe as observe
from jaxopt_compress.analysis.plan.config_delta import (
  config_delta as config_delta,
)
from jaxopt_compress.analysis.plan.fold_sizes import fold_sizes as fold_sizes
from jaxopt_compress.analysis.plan.plan import Plan as Plan
from jaxopt_compress.analysis.plan.plan import shrink as shrink
from jaxopt_compress.analysis.scopes import at_scopes as at_scopes
from jaxopt_compress.analysis.statistics import absmax as absmax
from jaxopt_compress.analysis.statistics import gram as gram
from jaxopt_compress.analysis.statistics import minmax as minmax
from jaxopt_compress.analysis.statistics import moments as moments
from jaxopt_compress.analysis.statistics import Statistic as Statistic
from jaxopt_compress.analysis.statistics import sum_abs as sum_abs
from jaxopt_compress.analysis.statistics import sum_squares as sum_squares
from jaxopt_compress.analysis.statistics import sums as sums
from jaxopt_compress.analysis.storage import nbytes as nbytes
from jaxopt_compress.analysis.structure.structure import structure as structure
from jaxopt_compress.analysis.uses import uses as uses
from jaxopt_compress.analysis.watch import Observed as Observed
from jaxopt_compress.calibration import calibrate as calibrate
from jaxopt_compress.calibration import correct_bias as correct_bias
from jaxopt_compress.calibration import equalize as equalize
from jaxopt_compress.calibration import fold_norms as fold_norms
from jaxopt_compress.calibration import output_error as output_error
from jaxopt_compress.core.array import CompressedArray as CompressedArray
from jaxopt_compress.core.array import is_compressed as is_compressed
from jaxopt_compress.core.compression import by_path as by_path
from jaxopt_compress.core.compression import chain as chain
from jaxopt_compress.core.compression import Compression as Compression
from jaxopt_compress.core.compression import freeze as freeze
from jaxopt_compress.core.compression import Info as Info
from jaxopt_compress.core.compression import Learned as Learned
from jaxopt_compress.core.compression import merge_learned as merge_learned
from jaxopt_compress.core.compression import split_learned as split_learned
from jaxopt_compress.core.lift import Dense as Dense
from jaxopt_compress.core.lift import lift as lift
from jaxopt_compress.core.lift import materialize as materialize
from jaxopt_compress.core.lift import rule as rule
from jaxopt_compress.core.operators import cast as cast
from jaxopt_compress.core.rules import map_named as map_named
from jaxopt_compress.core.rules import match as match
from jaxopt_compress.core.rules import named_leaves as named_leaves
from jaxopt_compress.distillation import grow as grow
from jaxopt_compress.distillation import widen as widen
from jaxopt_compress.export.rebuild import load_plan as load_plan
from jaxopt_compress.export.rebuild import rebuild as rebuild
from jaxopt_compress.export.rebuild import save_shrunk as save_shrunk
from jaxopt_compress.kernels import pack as pack
from jaxopt_compress.kernels import PackedArray as PackedArray
from jaxopt_compress.kernels import tune as tune
from jaxopt_compress.kernels import unpack as unpack
from jaxopt_compress.parallel.placing import device_put as device_put
from jaxopt_compress.pruning import methods as methods
from jaxopt_compress.pruning.optimizer import masked as masked
from jaxopt_compress.pruning.optimizer import sparse as sparse
from jaxopt_compress.pruning.prune import prune as prune
from jaxopt_compress.pruning.prune import prune_now as prune_now
from jaxopt_compress.pruning.prune import Sparsity as Sparsity
from jaxopt_compress.pruning.storage.bitmask import Bitmask as Bitmask
from jaxopt_compress.pruning.storage.n_m_array import NMArray as NMArray
from jaxopt_compress.pruning.storage.sparse_codes import (
  SparseCodes as SparseCodes,
)
from jaxopt_compress.pruning.storage.sparsify import sparsify as sparsify
from jaxopt_compress.pruning.structured.activations import (
  activations as activations,
)
from jaxopt_compress.pruning.structured.budget import Budget as Budget
from jaxopt_compress.pruning.structured.compensate import (
  compensate as compensate,
)
from jaxopt_compress.pruning.structured.compensate import readers as readers
from jaxopt_compress.pruning.structured.gradients import fisher as fisher
from jaxopt_compress.pruning.structured.gradients import gradients as gradients
from jaxopt_compress.pruning.structured.importance import (
  importance as importance,
)
from jaxopt_compress.pruning.structured.keep import select as select
from jaxopt_compress.pruning.structured.sort import sort as sort
from jaxopt_compress.pruning.structured.vocabulary import (
  trim_vocabulary as trim_vocabulary,
)
from jaxopt_compress.quantization import fake_quantize as fake_quantize
from jaxopt_compress.quantization import FP8 as FP8
from jaxopt_compress.quantization import FP8_DYNAMIC as FP8_DYNAMIC
from jaxopt_compress.quantization import MXFP4 as MXFP4
from jaxopt_compress.quantization import MXFP6 as MXFP6
from jaxopt_compress.quantization import MXFP8 as MXFP8
from jaxopt_compress.quantization import MXINT8 as MXINT8
from jaxopt_compress.quantization import NF4 as NF4
from jaxopt_compress.quantization import NVFP4 as NVFP4
from jaxopt_compress.quantization import QArray as QArray
from jaxopt_compress.quantization import QCache as QCache
from jaxopt_compress.quantization import QDotArray as QDotArray
from jaxopt_compress.quantization import (
  quantize_activations as quantize_activations,
)
from jaxopt_compress.quantization import quantize_cache as quantize_cache
from jaxopt_compress.quantization import Scheme as Scheme
from jaxopt_compress.quantization import Spec as Spec
from jaxopt_compress.quantization import W2A16 as W2A16
from jaxopt_compress.quantization import W4A4 as W4A4
from jaxopt_compress.quantization import W4A8 as W4A8
from jaxopt_compress.quantization import W4A16 as W4A16
from jaxopt_compress.quantization import W8A8 as W8A8
from jaxopt_compress.quantization import W8A16 as W8A16
from jaxopt_compress.quantization.quantize import quantize as quantize
