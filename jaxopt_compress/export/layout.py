"""The files of an export, and how one directory replaces another as a whole.

    new -> written beside    old -> put aside    new -> in its place    old -> removed

A rename is atomic, so a crash between two of these steps leaves either the old export,
the new one, or the old one put aside, which `check_target` puts back.
"""

import hashlib
import os
import shutil

PROGRAM = 'program.stablehlo'
WEIGHTS = 'weights.safetensors'
MANIFEST = 'manifest.json'
FORMAT = 'jaxopt_compress.export/1'


def check_target(directory):
  """Refuses to replace what is no export; restores one that a crash left aside."""
  aside = _aside(directory)
  if aside.exists() and not directory.exists():
    aside.rename(directory)
  shutil.rmtree(aside, ignore_errors=True)
  if not directory.exists():
    return
  # An empty directory may have been made for us; any other must be an export.
  ours = directory.is_dir() and (
    (directory / MANIFEST).exists() or not any(directory.iterdir())
  )
  if not ours:
    raise ValueError(
      f'{directory} exists and is no export (it has no {MANIFEST}). Choose'
      ' another directory, or remove it.'
    )


def install(new, directory):
  """Renames `new` to `directory`; an export that was there comes back on failure."""
  # A directory cannot be renamed over one that is not empty, so the old goes aside.
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
  """Waits until the files are on disk: a rename may reach it before they do."""
  for path in folder.iterdir():
    with open(path, 'rb') as f:
      os.fsync(f.fileno())


def sha256(path) -> str:
  """The hexadecimal digest of a file."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
