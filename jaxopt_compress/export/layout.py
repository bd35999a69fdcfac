"""The files of an export, and how one directory replaces another as a whole.

    new -> written beside    old -> put aside    new -> in its place    old -> removed

A rename is atomic, so a crash between two of these steps leaves either the old export,
the new one, or the old one put aside, which `target` puts back.
"""

import os
import pathlib
import shutil

PROGRAM = 'program.stablehlo'
WEIGHTS = 'weights.safetensors'
FILES = (PROGRAM, WEIGHTS)
MANIFEST = 'manifest.json'
FORMAT = 'jaxopt_compress.export/3'


def target(directory):
  """Where an export goes: a new path, an empty directory, or an export to replace.

  An export that a crash left aside is put back.
  """
  if not os.fspath(directory):
    raise ValueError('The directory of an export has an empty name. Name one.')
  # A link is followed: what would be renamed otherwise is the link.
  directory = pathlib.Path(directory).resolve()
  aside = _aside(directory)
  if aside.exists() and not directory.exists():
    aside.rename(directory)
  shutil.rmtree(aside, ignore_errors=True)
  if not directory.exists():
    return directory
  # An empty directory may have been made for us; any other must be an export.
  ours = directory.is_dir() and (
    (directory / MANIFEST).exists() or not any(directory.iterdir())
  )
  if not ours:
    raise ValueError(
      f'{directory} exists and is no export (it has no {MANIFEST}). Choose'
      ' another directory, or remove it.'
    )
  return directory


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


def sync(path):
  """Waits until files are on disk, of a folder all: a rename may reach it before."""
  for file in (path, *path.rglob('*')):
    if file.is_file():
      with open(file, 'rb') as f:
        os.fsync(f.fileno())
