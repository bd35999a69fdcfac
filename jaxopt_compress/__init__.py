"""Quantise, prune, distil and distribute JAX networks.

import jaxopt_compress as jc

uses = jc.uses(apply)(params, x)
qparams = jc.quantize(params, [(r'.*/kernel', jc.W8A8), (r'.*', None)], uses)
y = jax.jit(jc.lift(apply))(qparams, x)
"""

import functools as _functools
import sys as _sys
import warnings as _warnings

from jaxopt_compress import adapters
from jaxopt_compress import analysis
from jaxopt_compress import calibration
from jaxopt_compress import core
from jaxopt_compress import distillation
from jaxopt_compress import export
from jaxopt_compress import kernels
from jaxopt_compress import modules
from jaxopt_compress import parallel
from jaxopt_compress import pruning
from jaxopt_compress import quantization
from jaxopt_compress import rules
from jaxopt_compress.analysis import statistics
from jaxopt_compress.analysis.explain import explain
from jaxopt_compress.analysis.features import features
from jaxopt_compress.analysis.hoist.hoist import hoist
from jaxopt_compress.analysis.observe import observe
from jaxopt_compress.analysis.plan.plan import Plan
from jaxopt_compress.analysis.plan.plan import shrink
from jaxopt_compress.analysis.rules_for import rules_for
from jaxopt_compress.analysis.storage import nbytes
from jaxopt_compress.analysis.structure.structure import structure
from jaxopt_compress.calibration import calibrate
from jaxopt_compress.core import choices as _choices
from jaxopt_compress.core.array import CompressedArray
from jaxopt_compress.core.array import is_compressed
from jaxopt_compress.core.compression import chain
from jaxopt_compress.core.compression import Compression
from jaxopt_compress.core.compression import Info
from jaxopt_compress.distillation import grow
from jaxopt_compress.distillation import widen
from jaxopt_compress.export.trees import load
from jaxopt_compress.export.trees import save
from jaxopt_compress.kernels import pack
from jaxopt_compress.kernels import PackedArray
from jaxopt_compress.kernels import unpack
from jaxopt_compress.modules import cast
from jaxopt_compress.modules import freeze
from jaxopt_compress.modules import lift
from jaxopt_compress.modules import materialize
from jaxopt_compress.modules import uses
from jaxopt_compress.pruning import methods
from jaxopt_compress.pruning.prune import prune
from jaxopt_compress.pruning.spec import Sparsity
from jaxopt_compress.pruning.storage.sparsify import sparsify
from jaxopt_compress.pruning.structured.budget import Budget
from jaxopt_compress.pruning.structured.importance import importance
from jaxopt_compress.pruning.structured.keep import select
from jaxopt_compress.quantization import fake_quantize
from jaxopt_compress.quantization import FP8
from jaxopt_compress.quantization import NVFP4
from jaxopt_compress.quantization import QArray
from jaxopt_compress.quantization import Scheme
from jaxopt_compress.quantization import schemes
from jaxopt_compress.quantization import W4A8
from jaxopt_compress.quantization import W4A16
from jaxopt_compress.quantization import W8A8
from jaxopt_compress.quantization import W8A16
from jaxopt_compress.quantization.quantize import quantize
from jaxopt_compress.quantization.sensitivity import sensitivity

# All of them are defined by now.
for _leaf in CompressedArray.__subclasses__():
  export.register(_leaf)

__all__ = [
  'Budget',
  'CompressedArray',
  'Compression',
  'FP8',
  'Info',
  'NVFP4',
  'PackedArray',
  'Plan',
  'QArray',
  'Scheme',
  'Sparsity',
  'W4A16',
  'W4A8',
  'W8A16',
  'W8A8',
  'adapters',
  'analysis',
  'calibrate',
  'calibration',
  'cast',
  'chain',
  'core',
  'distillation',
  'explain',
  'export',
  'fake_quantize',
  'features',
  'freeze',
  'grow',
  'hoist',
  'importance',
  'is_compressed',
  'kernels',
  'lift',
  'load',
  'materialize',
  'methods',
  'modules',
  'nbytes',
  'observe',
  'pack',
  'parallel',
  'prune',
  'pruning',
  'quantization',
  'quantize',
  'rules',
  'rules_for',
  'save',
  'schemes',
  'select',
  'sensitivity',
  'shrink',
  'sparsify',
  'statistics',
  'structure',
  'unpack',
  'uses',
  'widen',
]

# Names of the release before, and where they are now. They go in the next.
_MOVED = {
  'Bitmask': 'pruning.Bitmask',
  'Dense': 'core.Dense',
  'FP8_DYNAMIC': 'schemes.FP8_DYNAMIC',
  'Learned': 'core.Learned',
  'LoRA': 'adapters.LoRA',
  'MXFP4': 'schemes.MXFP4',
  'MXFP6': 'schemes.MXFP6',
  'MXFP8': 'schemes.MXFP8',
  'MXINT8': 'schemes.MXINT8',
  'NF4': 'schemes.NF4',
  'NMArray': 'pruning.NMArray',
  'Observed': 'analysis.Observed',
  'QCache': 'quantization.QCache',
  'QDotArray': 'quantization.QDotArray',
  'SparseCodes': 'pruning.SparseCodes',
  'Spec': 'schemes.Spec',
  'Statistic': 'statistics.Statistic',
  'W2A16': 'schemes.W2A16',
  'W4A4': 'schemes.W4A4',
  'absmax': 'statistics.absmax',
  'activations': 'pruning.activations',
  'add_lora': 'adapters.add_lora',
  'at_scopes': 'analysis.at_scopes',
  'biases': 'analysis.biases',
  'by_path': 'rules.by_path',
  'check_seen': 'analysis.check_seen',
  'compensate': 'pruning.compensate',
  'config_delta': 'analysis.config_delta',
  'correct_bias': 'calibration.correct_bias',
  'device_put': 'parallel.device_put',
  'equalize': 'calibration.equalize',
  'feature_names': 'analysis.feature_names',
  'fisher': 'pruning.fisher',
  'fold_norms': 'calibration.fold_norms',
  'fold_sizes': 'analysis.fold_sizes',
  'gradients': 'pruning.gradients',
  'gram': 'statistics.gram',
  'load_plan': 'export.load_plan',
  'map_named': 'rules.map_named',
  'masked': 'pruning.masked',
  'match': 'rules.match',
  'merge_learned': 'core.merge_learned',
  'merge_lora': 'adapters.merge_lora',
  'merge_stats': 'analysis.merge_stats',
  'minmax': 'statistics.minmax',
  'moments': 'statistics.moments',
  'named_leaves': 'rules.named_leaves',
  'output_error': 'calibration.output_error',
  'prune_now': 'prune',
  'quantize_activations': 'quantization.quantize_activations',
  'quantize_cache': 'quantization.quantize_cache',
  'readers': 'pruning.readers',
  'rebuild': 'export.rebuild',
  'rescalings': 'analysis.rescalings',
  'rule': 'core.rule',
  'save_shrunk': 'export.save_shrunk',
  'sort': 'pruning.sort',
  'sparse': 'pruning.sparse',
  'split_learned': 'core.split_learned',
  'sum_abs': 'statistics.sum_abs',
  'sum_squares': 'statistics.sum_squares',
  'sums': 'statistics.sums',
  'trim_vocabulary': 'pruning.trim_vocabulary',
  'tune': 'kernels.tune',
  'with_lora': 'adapters.with_lora',
}


def __getattr__(name):
  if name not in _MOVED:
    guess = _choices.guess(name, [*__all__, *_MOVED])
    raise AttributeError(f'jaxopt_compress has no {name!r}.{guess}')
  _warnings.warn(
    f'jc.{name} is jc.{_MOVED[name]} now; the old name goes in the next release.',
    DeprecationWarning,
    stacklevel=2,
  )
  here = _sys.modules[__name__]
  return _functools.reduce(getattr, _MOVED[name].split('.'), here)


def __dir__():
  return __all__
