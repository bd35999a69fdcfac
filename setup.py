"""Packaging of jaxopt_compress."""

import setuptools

setuptools.setup(
  name='jaxopt_compress',
  version='0.1.0',
  description=(
    'Quantise, prune, distil and distribute: smaller and faster deep'
    ' networks for any JAX function of a pytree of parameters.'
  ),
  long_description=open('README.md', encoding='utf-8').read(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(include=['jaxopt_compress*']),
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
        'matplotlib>=3.8',
        'safetensors>=0.5',
        'scikit-learn>=1.4',
        'tqdm>=4.66',
      ]
    ),
    'tensorboard': ['tensorboardX>=2.6'],
    'hub': ['datasets>=3.0', 'tensorflow-datasets>=4.9'],
    'test': examples
    + [
      'hypothesis>=6.100',
      'ipykernel>=6.29',
      'nbclient>=0.10',
      'nbformat>=5.10',
      'pytest>=8.0',
      'pytest-xdist>=3.6',
      'ruff==0.17.6',
      'tensorboardX>=2.6',
    ],
  },
)
