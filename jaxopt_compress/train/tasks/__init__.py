"""What a network is asked for: the loss, the numbers it is judged by, and how answers are compared.

    classification    one number for each class; cross entropy; accuracy
    next_byte         the same of a text, told in bits per byte
    masked_byte       the same of the bytes that are hidden
    regression        numbers; squared, absolute or Huber error; rmse, mae, r2

A user's own is a `Task`, which a config names as 'my_pkg.tasks:my_task'. A loss is
`(answers, targets, mask) -> (sum, count)`, and so is a metric: sums and counts of
batches and devices add up, so that padding and splitting change nothing.
"""

from jaxopt_compress.train.tasks import check
from jaxopt_compress.train.tasks import classification
from jaxopt_compress.train.tasks import errors
from jaxopt_compress.train.tasks import read
from jaxopt_compress.train.tasks import regression
from jaxopt_compress.train.tasks.task import Metric
from jaxopt_compress.train.tasks.task import Task

__all__ = [
  'Metric',
  'Task',
  'check',
  'classification',
  'errors',
  'read',
  'regression',
]
