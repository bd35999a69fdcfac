"""Public functions whose signature has a tree, and those with one of no parameters."""

import importlib
import inspect
import pkgutil

import jaxopt_compress as jc
from jaxopt_compress import report
from jaxopt_compress.distillation import growth
from jaxopt_compress.pruning import storage
from jaxopt_compress.pruning import structured
from jaxopt_compress.train import evaluate
from jaxopt_compress.train import optimizer
from jaxopt_compress.train.step import finite
from jaxopt_compress.train.step import state as state_lib
from jaxopt_compress.train.step import train_step as train_step_lib

# Questions about what is stored, and what has other arguments of those types.
OTHERS = {
  'calibration.known.check',
  'calibration.known.computed',
  'analysis.explain.explain',
  'analysis.freedoms.rescalings',  # asks about shapes
  'analysis.plan.config_delta.config_delta',  # asks about shapes
  'analysis.observe.merge_stats',
  'analysis.storage.nbytes',
  'calibration.trials.keep',
  'analysis.rules_for.rules_for',
  'core.array.is_compressed',
  'core.lift.rule',
  'core.rules.match',
  'core.rules.named_leaves',
  'export.shrunk.rebuild',  # builds one
  'export.stablehlo.save',  # a program
  'distillation.cache.fingerprint.fingerprint',  # of codes as they are
  'distillation.cache.source.read',
  'distillation.cache.write.write',
  'distillation.losses.chunked.chunked',  # hidden states and a head
  'distillation.losses.labels.distill',  # logits
  'distillation.losses.weighting.weighted',
  'distillation.on_policy.mixed',  # sequences
  'distillation.layers.starts',  # asks about shapes
  'kernels.choose.tune',  # packs, by time
  'kernels.pack.packable',
  # What methods are made of: theirs are the trees.
  'pruning.advance.advance',
  'pruning.advance.by_path',
  'pruning.advance.live',
  'pruning.clock.clocked',
  'pruning.clock.learning',
  'pruning.exchange.exchanged',
  'pruning.exchange.first',
  'pruning.state.named_states',
  'pruning.words.fields',
  'pruning.words.rules',
  'pruning.masking.by_rule',  # says which rule takes which leaf
  'pruning.masking.axes_of',  # of one leaf
  'pruning.masking.check_masks',  # asks about shapes
  'pruning.scoring.by_path',  # gives things names
  'pruning.scoring.settle',  # of one leaf
  'pruning.select.largest',
  'pruning.select.shares',
  'pruning.state.is_state',
  'pruning.state.states',  # of what is there
  'pruning.structured.vocabulary.trim_vocabulary',  # tokens
  'parallel.placing.shardings',  # says where, of shapes
  'quantization.cache.quantize_cache',
  'report.html.page',
  'report.svg.frame',
  'report.latency.by_batch',
  'report.latency.measure',
  'report.page.write',
  'report.plots.histograms',
  'pruning.structured.stopwatch.seconds',
  'pruning.structured.votes.by_group',
  'pruning.structured.votes.named',
  'pruning.structured.votes.put_together',
  'report.records.answers_from_json',
  'report.records.group_from_json',
  'report.records.leaf_from_json',
  'report.records.stage_from_json',
  'report.records.to_json',
  'report.table.facts',
  'train.step.finite.not_finite',  # numbers of a step
  'train.evaluate.forward',
  'train.optimizer.schedule',
}


def takes_trees():
  """Public functions whose signature has a tree, or a function of trees."""
  modules = [jc, jc.analysis, jc.core, jc.export, jc.kernels, jc.quantization]
  modules += [jc.rules, evaluate, optimizer]
  modules += [state_lib, finite, train_step_lib]
  for room in (
    jc.adapters,
    jc.calibration,
    jc.distillation,
    growth,
    jc.parallel,
    jc.pruning,
    storage,
    structured,
    report,
  ):
    for found in pkgutil.iter_modules(room.__path__, f'{room.__name__}.'):
      modules.append(importlib.import_module(found.name))
  names = set()
  for name, f in (item for module in modules for item in vars(module).items()):
    home = getattr(f, '__module__', '')
    if name.startswith('_') or not home.startswith('jaxopt_compress.'):
      continue
    if callable(f) and not inspect.isclass(f):
      signature = str(inspect.signature(f))
      if any(w in signature for w in ('Any', 'Callable', 'Compression')):
        names.add(f'{home.partition(".")[2]}.{f.__name__}')
  return names
