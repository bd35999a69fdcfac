"""Results: tables, remarks and plots from plain records.

stage = report.stage('int8', params, value=0.987)
rows  = report.coverage(params, float_params, jc.explain(apply)(params, x))
times = report.measure({'float': (f, args), 'int8': (g, args)}, against='float')
report.write(workdir, report.Report('Digits', [stage], {'int8': rows}))
"""

from jaxopt_compress.report import calibration
from jaxopt_compress.report import channels
from jaxopt_compress.report import curves
from jaxopt_compress.report import pays
from jaxopt_compress.report import plots
from jaxopt_compress.report import records
from jaxopt_compress.report import table
from jaxopt_compress.report.findings import remarks
from jaxopt_compress.report.latency import by_batch
from jaxopt_compress.report.latency import measure
from jaxopt_compress.report.leaves import coverage
from jaxopt_compress.report.leaves import error_db
from jaxopt_compress.report.page import markdown
from jaxopt_compress.report.page import read
from jaxopt_compress.report.page import Report
from jaxopt_compress.report.page import text
from jaxopt_compress.report.page import write
from jaxopt_compress.report.provenance import environment
from jaxopt_compress.report.provenance import opens
from jaxopt_compress.report.records import Answers
from jaxopt_compress.report.records import disk_bytes
from jaxopt_compress.report.records import GroupRecord
from jaxopt_compress.report.records import LeafRecord
from jaxopt_compress.report.records import stage
from jaxopt_compress.report.records import StageRecord
from jaxopt_compress.report.records import Timing

__all__ = [
  'Answers',
  'GroupRecord',
  'LeafRecord',
  'Report',
  'StageRecord',
  'Timing',
  'by_batch',
  'calibration',
  'channels',
  'coverage',
  'curves',
  'disk_bytes',
  'environment',
  'error_db',
  'markdown',
  'measure',
  'opens',
  'pays',
  'plots',
  'read',
  'records',
  'remarks',
  'stage',
  'table',
  'text',
  'write',
]
