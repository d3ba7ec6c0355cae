"""Packaging: the dependencies, and the extras for hardware and tests."""

from setuptools import find_packages, setup

VERIFIERS = ["math-verify>=0.8", "langdetect>=1.0.9", "emoji>=2"]
GCS = ["gcsfs>=2024.2"]
COMPILER = "libtpu>=0.0.42 ; sys_platform == 'linux'"  # of TPUs, also absent ones
TEST = [
    COMPILER,
    *GCS,
    *VERIFIERS,
    "matplotlib>=3.9",
    "pytest>=8",
    "pytest-xdist>=3.7",
    "ruff>=0.15",
    "torch>=2.4",
    "transformers>=4.50",
]

setup(
    name="easylm",
    version="0.1.0",
    description="Post-training of language models in JAX: TPU pods, GPUs, laptops",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["easylm", "easylm.*", "configs", "configs.*"]),
    package_data={"easylm.study": ["style.css"]},
    install_requires=[
        "jax>=0.10,<0.13",
        "flax>=0.12,<0.13",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "tensorflow-datasets>=4.9.9",
        "array_record>=0.7",
        "sentencepiece>=0.2",
        "ml_collections>=1.0",
        "absl-py>=2",
        "tokenizers>=0.21",
        "jinja2>=3.1",
        "etils[epath]>=1.9",
        "fsspec>=2024.2",
        "ml_dtypes>=0.5",
        "numpy>=2",
        "protobuf>=4",
        "pyarrow>=16",
        "tensorboardX>=2.6",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "gpu": ["jax[cuda12]"],
        "gcs": GCS,
        "wandb": ["wandb>=0.17"],
        "notebooks": ["jupyter", "nbclient", "matplotlib>=3.9"],
        "plan": [COMPILER],
        "verifiers": VERIFIERS,
        "test": TEST,
    },
)
