"""Questions asked of a program: one file a question."""

from jaxopt_compress.analysis.added import biases as biases
from jaxopt_compress.analysis.features import feature_names as feature_names
from jaxopt_compress.analysis.freedoms import rescalings as rescalings
from jaxopt_compress.analysis.hoist.hoist import hoisted as hoisted
from jaxopt_compress.analysis.observe import check_seen as check_seen
from jaxopt_compress.analysis.observe import merge_stats as merge_stats
from jaxopt_compress.analysis.plan.config_delta import (
  config_delta as config_delta,
)
from jaxopt_compress.analysis.plan.fold_sizes import fold_sizes as fold_sizes
from jaxopt_compress.analysis.scopes import at_scopes as at_scopes
from jaxopt_compress.analysis.watch import Observed as Observed
