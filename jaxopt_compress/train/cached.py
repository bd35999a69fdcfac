"""A teacher that is asked once: its answers lie in the workdir, and no step runs it.

    caches/<digest>/    a `distillation.cache`; the digest is that of its manifest

Stages with the same teacher, data and options share a cache. One that was interrupted
goes on with its next file.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_compress import data as data_lib
from jaxopt_compress.core import lift
from jaxopt_compress.distillation import cache as cache_lib
from jaxopt_compress.distillation import teachers as teachers_lib
from jaxopt_compress.distillation.losses import tail
from jaxopt_compress.parallel import mesh as mesh_lib
from jaxopt_compress.train import answers as answers_lib
from jaxopt_compress.train import distil
from jaxopt_compress.train import job as job_lib
from jaxopt_compress.train import metrics as metrics_lib
from jaxopt_compress.train import numbered as numbered_lib
from jaxopt_compress.train import plan as plan_lib
from jaxopt_compress.train import preemption
from jaxopt_compress.train import processes
from jaxopt_compress.train import soft_loss
from jaxopt_compress.train import stages as stages_lib

# Bytes of a file, about: its answers are lost where a writer is killed.
_FILE = 2**22


@dataclasses.dataclass(frozen=True)
class Answered:
  """Batches with the answers to them, by step."""

  batches: data_lib.Batches
  numbered: numbered_lib.Numbered
  answers: cache_lib.Cache

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    said = self.answers.take(self.numbered.numbers(step))
    return self.batches[step] | answers_lib.named(said)


def lessons(
  job: job_lib.Job,
  built: stages_lib.Built,
  finished: Mapping[str, Any],
  watch: preemption.Watch,
) -> tuple[Any, tuple]:
  """What a stage is trained on, and who teaches while it is.

  Args:
    job: the run.
    built: the stage.
    finished: what the stages left behind that it learns from.
    watch: asked after each file that is written.

  Returns:
    (batches, teachers): `batches[step]` has answers where they are kept, and then
    there are no teachers; see `distil.frozen`.

  Raises:
    preemption.Preempted: what was written is kept.
    cache.CorruptShard: with the file to delete.
  """
  stage = built.stage
  found = job.data.batches(stage)
  if not stage.cache.asked:
    return found, distil.frozen(stage.distil, finished)
  numbered = _numbered(job, built)
  made = _manifest(job, built, finished, numbered)
  folder = _folder(job, made)
  metrics_lib.log(f'[{stage.name}] {_told(built, made, numbered)}')
  cache_lib.write(
    folder,
    made,
    _asked(job, built, finished, numbered),
    batch_size=stage.batch_size,
    part=(jax.process_index(), jax.process_count()),
    progress=lambda files: _shown(stage.name, files, watch),
  )
  processes.wait(f'answers for {stage.name}')
  answers = cache_lib.read(
    folder, data=made.data, vocabulary=made.vocabulary, model=made.model
  )
  # Now, and not in the middle of the stage.
  answers.check()
  return Answered(found, numbered, answers), ()


def facts(
  job: job_lib.Job, built: stages_lib.Built, finished: Mapping[str, Any]
) -> str:
  """A sentence on the answers that a finished stage was trained on."""
  numbered = _numbered(job, built)
  made = _manifest(job, built, finished, numbered)
  return _told(built, made, numbered) + f' In {_folder(job, made).name}.'


def _told(built, made, numbered):
  kept = f'{made.k} draws' if made.sampled else f'{made.k} entries and the rest'
  dense = 4 * made.vocabulary
  return (
    f'{" and ".join(built.stage.distil.stages)} answered each'
    f' {numbered.by} once, {made.examples:,} in all: {kept} of {made.vocabulary}, at'
    f' T = {made.temperature:g}, in {made.codec.nbytes} bytes a position (dense'
    f' float32: {dense:,}), {made.nbytes:,} bytes.'
  )


def _folder(job, made) -> pathlib.Path:
  return job.work / 'caches' / made.digest[:12]


def _numbered(job, built):
  stage, data = built.stage, job.plan.data
  content = job.data.content(stage)
  return numbered_lib.numbered(job.data.batches(stage), stage, data, content)


def _manifest(job, built, finished, numbered):
  stage, answers = built.stage, built.model.answers
  positions = answers.shape[1:-1]
  made = cache_lib.Manifest(
    model=_model(built, finished),
    data=numbered.data,
    vocabulary=answers.shape[-1],
    k=stage.cache.entries,
    examples=numbered.count,
    positions=positions,
    dtype=stage.distil.teacher_dtype or 'float32',
    temperature=_temperature(stage),
    sampled=bool(stage.cache.draws),
  )
  batch = stage.batch_size * made.codec.nbytes * int(np.prod(positions))
  # Whole batches, so that by step each is made once.
  return dataclasses.replace(
    made, shard=stage.batch_size * max(1, _FILE // batch)
  )


def _model(built, finished):
  """Of what the teachers compute: weights, and the models that these are of."""
  frozen = mesh_lib.local(distil.frozen(built.stage.distil, finished))
  said = {
    'weights': cache_lib.fingerprint(frozen),
    'models': [model.keywords for model in built.teachers],
    'shares': [share for _, share in built.stage.distil.teachers],
  }
  text = json.dumps(said, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def _temperature(stage):
  soft = soft_loss.read('loss', stage.distil.loss)
  return float(stage.distil.temperature) if soft.takes('temperature') else 1.0


def _asked(job, built, finished, numbered):
  """`numbers -> answers` of the teachers, on one device of each process."""
  stage = built.stage
  temperature, k = _temperature(stage), stage.cache.entries
  applies = distil.applies(stage.distil, built.teachers)
  taught = [teachers_lib.frozen(lift.lift(f)) for f in applies]
  shares = [share for _, share in stage.distil.teachers]
  frozen = mesh_lib.local(distil.frozen(stage.distil, finished))
  # Draws depend on the number alone, so that a run that resumes has the same.
  key = jax.random.key(plan_lib.stage_seed(job.plan.seed, 'draws'))

  @jax.jit
  def answer(frozen, x, numbers):
    said = [f(*tree, x)[0] for f, tree in zip(taught, frozen, strict=True)]
    logits = said[0]
    if stage.distil.ensemble:
      logits = teachers_lib.ensemble(
        said, temperature=temperature, weights=shares
      )
    logits = logits.astype(jnp.float32) / temperature
    if not stage.cache.draws:
      return tail.compress(logits, k)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)

    def draw(x, key):
      return cache_lib.sample(x, k, key=key)

    return jax.vmap(draw)(logits, keys)

  def asked(numbers):
    # 32 bits are enough for the draws of one example to differ from another's.
    return answer(frozen, numbered.inputs(numbers), numbers.astype(np.uint32))

  return asked


def _shown(
  name: str, files: Iterable[int], watch: preemption.Watch
) -> Iterator[int]:
  """The files, with a bar, as long as nobody asks to stop."""
  files = list(files)
  progress = metrics_lib.Progress(f'{name}, answers', 0, len(files))
  for done, file in enumerate(files, 1):
    yield file
    progress.advance()
    if done == len(files) or done % max(1, len(files) // 10) == 0:
      progress.show(done, {'files': done})
    # Where there are several processes each has files of its own, and none may ask
    # more often than another.
    if jax.process_count() == 1 and watch.requested():
      raise preemption.Preempted(
        f'Stopped at file {done} of {len(files)} with answers for stage {name!r};'
        ' they are kept.'
      )
  progress.close()
