"""Which of the user's code and files a stage was made with, and whether they have changed.

A checkpoint knows the name 'my_pkg.nets:MyNet', not what it stood for. So a workdir keeps
the digests of the files behind such names, for each stage as it began, in `code.json`:

    {"teacher": {"my_pkg.nets:MyNet": "9f86d0..."}}

A change is told, and refused nowhere: whether it matters, only the user knows.
"""

import json
import pathlib
from typing import Any

import jax

from jaxopt_compress.disk import files
from jaxopt_compress.disk import sealed
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import named
from jaxopt_compress.train import options
from jaxopt_compress.train import plan as plan_lib

FILE = 'code.json'


def digests(plan: plan_lib.Plan, stage: options.Stage) -> dict[str, str]:
  """{name: sha256 of its file} of all that is not this library's in a stage."""
  needed = plan.needed(stage)
  said = [plan.data.name, plan.asked.name, plan.asked.loss]
  for s in needed:
    said += [plan.models[s.model].get('name'), s.distil.loss]
  # A loss may have numbers behind its name.
  names = [x.split(',')[0] for x in said if named.is_own(x)]
  found = {name: named.digest(name) for name in names}
  paths = [pathlib.Path(s.file).expanduser() for s in needed if s.file]
  return found | {str(p): sealed.sha256(p) for p in paths if p.is_file()}


def note(job: job_lib.Job, stage: options.Stage) -> None:
  """Writes down what a stage begins with, where it does not go on."""
  if job.checkpoints(stage.name).exists():
    return
  found = digests(job.plan, stage)
  if jax.process_index() == 0 and found:
    known = _read(job.work) | {stage.name: found}
    files.replace(job.work / FILE, json.dumps(known, indent=2) + '\n')


def changed(job: job_lib.Job) -> dict[str, str]:
  """{name: a sentence} of each whose file is another than when a stage began."""
  stages = {}
  for stage in job.plan.stages:
    then = _read(job.work).get(stage.name, {})
    if not then:
      continue
    for name, digest in digests(job.plan, stage).items():
      if then.get(name, digest) != digest:
        stages.setdefault(name, []).append(stage.name)
  return {
    name: f'has changed since {", ".join(some)} began; {_kept(job, some)}'
    for name, some in stages.items()
  }


def _kept(job, stages) -> str:
  if not any(job.stage(name).exists() for name in stages):
    return 'what was trained goes on with it as it is now'
  return (
    'what is finished is kept as it is (remove its folder in stages, or take another'
    ' workdir, to make it anew)'
  )


def _read(work) -> dict[str, Any]:
  path = work / FILE
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text())
  except ValueError as e:
    raise ValueError(f'{path} is damaged ({e}). Remove it.') from e
