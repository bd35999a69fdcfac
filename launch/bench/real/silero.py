"""Silero VAD, 16 kHz: is somebody speaking, chunk after chunk.

A chunk is 512 samples behind the last 64 of the one before. Sounds are made here: chords,
noise, and syllables (pulses of a voice through the resonances of vowels). The network's
state goes from chunk to chunk, so errors may add up.
"""

import pathlib

import numpy as np

from launch.bench.real import files
from launch.bench.real import measure
from launch.bench.real import onnx_program

PACKAGE = 'silero_vad'
_RATE, _CHUNK, _BEFORE, _WIDTH = 16000, 512, 64, 128
_STREAMS, _CHUNKS = 16, 60
_CELLS = (1, 16)
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (530, 1840, 2480))


def sound(rng: np.random.Generator, kind: str, samples: int) -> np.ndarray:
  """[samples] between -1 and 1; `kind` is 'chord', 'noise' or 'voice'."""
  time = np.arange(samples) / _RATE
  if kind == 'noise':
    return 0.1 * rng.standard_normal(samples)
  if kind == 'chord':
    tones = rng.uniform(100, 2000, 3)
    return 0.1 * np.sin(2 * np.pi * tones[:, None] * time).sum(0)
  pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time))
  phase = np.cumsum(pitch) / _RATE
  # The n-th harmonic is as loud as the vowel's resonances make it.
  y, syllable = np.zeros(samples), (4 * time).astype(int)
  for n in range(1, 30):
    loud = np.zeros(samples)
    for i, vowel in enumerate(_VOWELS):
      near = sum(1 / (1 + ((n * pitch - f) / 120) ** 2) for f in vowel)
      loud += np.where(syllable % 3 == i, near, 0)
    y += loud * np.sin(2 * np.pi * n * phase) / n**0.5
  y *= np.sin(np.pi * (4 * time % 1)) ** 2  # syllables
  y[samples // 2 : 3 * samples // 4] = 0  # a pause
  return 0.3 * y / np.abs(y).max() + 0.003 * rng.standard_normal(samples)


def chunks(streams: int, steps: int) -> np.ndarray:
  """[steps, streams, 576] float32 of sounds of each kind."""
  rng, samples, found = np.random.default_rng(0), steps * _CHUNK, []
  for i in range(streams):
    kind = ('voice', 'noise', 'chord', 'voice')[i % 4]
    y = np.concatenate([np.zeros(_BEFORE), sound(rng, kind, samples)])
    width = _CHUNK + _BEFORE
    found.append([y[_CHUNK * j :][:width] for j in range(steps)])
  return np.float32(found).swapaxes(0, 1)


def judge(found: np.ndarray, want: np.ndarray) -> dict[str, float]:
  """Of probabilities: how often they agree about one half; how far they are."""
  far = np.abs(found - want)
  return {
    'agree': float(((found > 0.5) == (want > 0.5)).mean()),
    'speech': float((want > 0.5).mean()),
    'mean error': float(far.mean()),
    'largest': float(far.max()),
  }


def load(folder: str, make: files.Maker) -> measure.Model:
  """The model of the package in `folder`, and files for rivals."""
  source = pathlib.Path(folder) / 'data' / 'silero_vad_16k_op15.onnx'
  run, params, weights = onnx_program.load(
    make('onnx_dump', 'silero.npz', source=str(source))
  )
  rate = np.array(_RATE)

  def apply(params, x, state, _):
    return run(params, x, state, rate)

  audio = chunks(_STREAMS, _CHUNKS)
  state = np.zeros((2, _STREAMS, _WIDTH), np.float32)
  steps = np.broadcast_to(state, (_CHUNKS, *state.shape))
  names = 'input', 'state', 'sr'

  def listed(cell):
    batch = int(cell.split()[0])
    # As many streams as in the cell, of all that there are.
    x = audio.reshape(-1, batch, audio.shape[-1])
    many = np.zeros((len(x), 2, batch, _WIDTH), np.float32), [_RATE] * len(x)
    calibration = dict(zip(names, (x, *many), strict=True))
    sizes = {'batch': batch, 'sequence': _CHUNK + _BEFORE}
    name = f'silero_{batch}'
    return files.onnx_files(make, str(source), name, calibration, sizes)

  return measure.Model(
    name='Silero',
    apply=apply,
    params=params,
    inputs=names,
    carry={'state': (1, 'stateN')},
    where=files.pattern(weights),
    cells={
      f'{n} streams': (
        audio[20, :n],
        np.zeros((2, n, _WIDTH), np.float32),
        rate,
      )
      for n in _CELLS
    },
    judged=(audio, steps, np.full(_CHUNKS, _RATE)),
    judge=judge,
    files=listed,
    judged_cell=f'{_STREAMS} streams',
    bars={'agree': None},
  )
