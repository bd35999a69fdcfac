"""Packaging of jaxopt_compress."""

from concurrent import futures
import importlib.util
import os
import pathlib
import platform
import shlex

import setuptools
from setuptools.command import build_ext

_SOURCE = pathlib.Path('jaxopt_compress/kernels/cpu/source')
_AVX512 = [f'-mavx512{f}' for f in ('f', 'bw', 'vl', 'dq', 'vnni')] + ['-mfma']
# Compiler flags of each instruction path; other sources are for any machine.
_FLAGS = {
  'x86_64': {
    'amx': [*_AVX512, '-mavx512vbmi2', '-mamx-tile', '-mamx-int8'],
    'avx512vbmi2': [*_AVX512, '-mavx512vbmi2'],
    'avx512': _AVX512,
    'avxvnni': ['-mavx2', '-mfma', '-mavxvnni'],
    'avx2': ['-mavx2', '-mfma'],
  },
  'aarch64': {'neon': ['-march=armv8.2-a+dotprod']},
}


class BuildKernels(build_ext.build_ext):
  """Compiles each path for its instructions; without a compiler, says so."""

  def build_extension(self, ext):
    machine = {'AMD64': 'x86_64', 'arm64': 'aarch64'}.get(
      platform.machine(), platform.machine()
    )
    flags = _FLAGS.get(machine, {})
    every = {name for paths in _FLAGS.values() for name in paths}
    spec = importlib.util.find_spec('jaxlib')
    names = {s: pathlib.Path(s).stem for s in sorted(ext.sources)}
    here = [s for s, n in names.items() if n in flags or n not in every]
    try:
      if spec is None:
        raise RuntimeError('jaxlib, which has the headers, is not installed')
      headers = pathlib.Path(spec.submodule_search_locations[0]) / 'include'

      def compiled(source):
        return self.compiler.compile(
          [source],
          output_dir=self.build_temp,
          include_dirs=[str(headers)],
          extra_postargs=[
            *ext.extra_compile_args,
            *flags.get(names[source], []),
            *shlex.split(os.environ.get('CXXFLAGS', '')),
          ],
        )

      with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [o for made in pool.map(compiled, here) for o in made]
      path = pathlib.Path(self.get_ext_fullpath(ext.name))
      path.parent.mkdir(parents=True, exist_ok=True)
      self.compiler.link_shared_object(
        objects, str(path), target_lang='c++', libraries=['pthread']
      )
    except Exception as e:  # Whatever failed, the package works without.
      print(
        f'jaxopt_compress: the CPU kernels were NOT built ({e}). Everything works,'
        ' compressed models slower than they could be on CPUs.'
      )


_KERNELS = setuptools.Extension(
  'jaxopt_compress.kernels.cpu._kernels',
  [str(p) for p in sorted(_SOURCE.glob('*.cc'))],
  depends=[str(p) for p in sorted(_SOURCE.glob('*.h'))],
  extra_compile_args=[
    '-std=c++17',
    '-O3',
    '-g0',  # Python's own flags ask for debug information: a third of the time.
    '-fno-math-errno',
    '-fno-trapping-math',
    '-ffp-contract=fast',
  ],
  optional=True,
)

setuptools.setup(
  name='jaxopt_compress',
  version='0.1.0',
  description=(
    'Quantise, prune, distil and distribute: smaller and faster deep'
    ' networks for any JAX function of a pytree of parameters.'
  ),
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  # Shipped configs lie beside the package in a clone, and in it once installed.
  packages=[
    *setuptools.find_packages(include=['jaxopt_compress*']),
    'jaxopt_compress.configs',
    'jaxopt_compress.configs.own',
  ],
  package_dir={'jaxopt_compress.configs': 'configs'},
  package_data={
    'jaxopt_compress.kernels.cpu': ['source/*'],
    'jaxopt_compress.report': ['page.css', 'page.js'],
  },
  entry_points={
    'console_scripts': [
      'jaxopt-compress = jaxopt_compress.command.console:main'
    ]
  },
  ext_modules=[_KERNELS],
  cmdclass={'build_ext': BuildKernels},
  install_requires=[
    'absl-py>=2.1',
    'chex>=0.1.90',
    'flax>=0.12.4',
    'jax>=0.10.2',
    'ml_collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.12.0',
  ],
  extras_require={
    # The launch scripts: data, plots, exported programs.
    'examples': (
      examples := [
        'flatbuffers>=24.3',
        'grain>=0.2.10',
        'pillow>=10.0',
        'safetensors>=0.5',
        'scikit-learn>=1.4',
        'tqdm>=4.66',
      ]
    ),
    # The site: what builds it, and what its pages run.
    'docs': (
      docs := examples
      + [
        'furo>=2024.8',
        'ipykernel>=6.29',
        'matplotlib>=3.8',
        'myst-nb>=1.2',
        'sphinx>=8.1',
        'sphinx-copybutton>=0.5',
        'sphinx-design>=0.6',
        'sphinxcontrib-katex>=0.9.11',
      ]
    ),
    'tensorboard': ['tensorboardX>=2.6'],
    'hub': ['datasets>=3.0', 'tensorflow-datasets>=4.9'],
    'test': docs
    + [
      'dm-haiku>=0.0.14',
      'equinox>=0.13',
      'hypothesis>=6.100',
      'nbclient>=0.10',
      'nbformat>=5.10',
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'ruff==0.17.6',
      'tensorboardX>=2.6',
    ],
  },
)
