"""What came out: tables, remarks and plots from plain records.

stage = report.stage('int8', params, value=0.987)
rows  = report.coverage(params, float_params, jc.explain(apply)(params, x))
times = report.measure({'float': (f, args), 'int8': (g, args)}, against='float')
report.write(workdir, report.Report('Digits', [stage], {'int8': rows}))
"""

from jaxopt_compress.report.findings import remarks
from jaxopt_compress.report.latency import by_batch, measure
from jaxopt_compress.report.leaves import coverage, error_db
from jaxopt_compress.report.page import Report, markdown, read, text, write
from jaxopt_compress.report.provenance import environment
from jaxopt_compress.report.records import (
  LeafRecord,
  StageRecord,
  Timing,
  disk_bytes,
  stage,
)

__all__ = [
  'LeafRecord',
  'Report',
  'StageRecord',
  'Timing',
  'by_batch',
  'coverage',
  'disk_bytes',
  'environment',
  'error_db',
  'markdown',
  'measure',
  'read',
  'remarks',
  'stage',
  'text',
  'write',
]
