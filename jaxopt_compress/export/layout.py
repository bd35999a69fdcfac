"""The files of an export, and how a whole directory takes the place of another."""

import hashlib
import os
import shutil

PROGRAM = 'program.stablehlo'
WEIGHTS = 'weights.safetensors'
MANIFEST = 'manifest.json'
FORMAT = 'jaxopt_compress.export/1'


def check_target(directory):
  """Refuses what is not ours to replace; puts back what a crash put aside."""
  aside = _aside(directory)
  if aside.exists() and not directory.exists():
    aside.rename(directory)
  shutil.rmtree(aside, ignore_errors=True)
  if not directory.exists():
    return
  ours = directory.is_dir() and (
    (directory / MANIFEST).exists() or not any(directory.iterdir())
  )
  if not ours:
    raise ValueError(
      f'{directory} exists and is no export (it has no {MANIFEST}). Choose'
      ' another directory, or remove it.'
    )


def install(new, directory):
  aside = _aside(directory)
  if directory.exists():
    directory.rename(aside)
  try:
    new.rename(directory)
  except BaseException:
    if aside.exists():
      aside.rename(directory)
    raise
  shutil.rmtree(aside, ignore_errors=True)


def _aside(directory):
  return directory.with_name(f'.{directory.name}.old')


def sync(folder):
  """Waits until the files are on disk: a rename may overtake their content."""
  for path in folder.iterdir():
    with open(path, 'rb') as f:
      os.fsync(f.fileno())


def sha256(path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
