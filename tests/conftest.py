"""Every test runs on CPU with four simulated devices."""

import gc
import importlib.metadata
import os

os.environ['JAX_PLATFORMS'] = os.environ.get('JAX_PLATFORMS', 'cpu')

_FLAGS = [
  '--xla_force_host_platform_device_count=4',
  # Most of the time goes into compiling programs that run once. What must hold
  # of programs as users compile them runs in a process of its own.
  '--xla_backend_optimization_level=0',
]
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
  # Each process has a core of its own: cutting programs up only costs.
  _FLAGS.append('--xla_cpu_parallel_codegen_split_count=1')
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])

# Traces are many objects that stay: looking through them often finds nothing.
gc.set_threshold(100_000)

import jax  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_collection_finish():
  """What was imported stays: whoever looks for garbage need not go through it."""
  gc.collect()
  gc.freeze()


@pytest.fixture
def compiled(tmp_path_factory, monkeypatch):
  """For runs that compile the same programs, in processes of their own as well.

  The first leaves them in a folder for the others. Tests of single programs find
  nothing there, and only pay for what is written.
  """
  folder = str(tmp_path_factory.getbasetemp() / 'compiled')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', folder)
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  names = (
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = [getattr(jax.config, name) for name in names]
  for name, value in zip(names, (folder, 0.0), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in zip(names, before, strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(autouse=True, scope='module')
def _programs_of_one_module():
  """Past some 8000 programs jax keeps no more: all would be looked up slowly."""
  yield
  jax.clear_caches()
