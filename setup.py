"""Package metadata. Version ranges are those that the tests were run with."""
from setuptools import find_packages, setup

setup(
  name='diffusion-jax',
  version='0.1.0',
  description='Diffusion models in JAX: pure functions for research, one command to train, sample and look.',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=[*find_packages(include=['diffusion', 'diffusion.*']), 'diffusion.recipes'],
  package_dir={'diffusion.recipes': 'configs'},  # found by name, as --config=cosine_ddim
  install_requires=[
    'jax>=0.10.2,<0.13',
    'flax>=0.12.8,<0.13',
    'optax>=0.2.8,<0.3',
    'orbax-checkpoint>=0.12.8,<0.13',
    'matplotlib>=3.11,<4',
    'ml-collections>=1.1,<2',
    'absl-py>=2.5,<3',
    'etils[epath]>=1.15,<2',
    'flatbuffers>=25.12,<26',  # jax.export imports it without declaring it
    'grain>=0.2.18,<0.3',
    'numpy>=2.4,<3',
    'pillow>=13,<14',
    'safetensors>=0.8,<1',
    'scikit-learn>=1.9,<2',
    'scipy>=1.17,<2',
    'threadpoolctl>=3.5,<4',
    'tensorboardX>=2.6.5,<3',
    'tensorflow-datasets>=4.9.10,<5',
    'importlib_resources>=7.1,<8',  # tensorflow-datasets imports it without declaring it
    'tqdm>=4.70,<5',
  ],
  extras_require={
    'test': ['pytest>=9,<10', 'pytest-xdist>=3.5,<4', 'constriction>=0.5,<0.6', 'optuna>=5,<6', 'psutil>=7,<8',
             'hypothesis>=6.100,<7'],
    'tensorboard': ['tensorboard>=2.18,<3'],
    'tf': ['tensorflow>=2.18,<3'],  # only to prepare stock data sets
    'tpu': ['libtpu>=0.0.52,<0.1'],  # TPUs, and compiling for them without one: experiments/aot.py
    'codec': ['constriction>=0.5,<0.6'],  # lossless compression with a model
    'tables': ['lifelines>=0.30,<0.31'],  # a file of it alone: data of the German breast cancer study
    'scans': ['nibabel>=5.4,<6', 'nilearn>=0.14,<0.15'],  # NIfTI volumes; a file of nilearn alone: a brain
    'ray': ['ray>=2.60,<3'],  # sweeps on a Ray cluster
    'optuna': ['optuna>=5,<6'],  # sweeps by search
    'parity': ['torch>=2.9,<3', 'torchvision', 'transformers>=5.23,<6', 'pytorch-fid>=0.3,<0.4',
               'torch-fidelity>=0.4,<0.5'],  # features beside PyTorch's
    'compare': ['torch>=2.9,<3', 'diffusers>=0.35,<1', 'transformers>=5.23,<6'],  # parity of interop, benchmarks
  },
)
