"""Fails where installing hra_jax changed a package that was there before, or where `import seqio` fails.

    python tests/environments/check_pins.py tests/environments/colab.txt

pip sees declared requirements only. Generated code that refuses an older protobuf does so at import, hence the import.
"""

import importlib
import importlib.metadata
import sys
from pathlib import Path


def changed(constraints: str) -> list[str]:
    """Returns a line for each package whose installed version is not that of `NAME==VERSION` in `constraints`."""
    pinned = [line.split("==") for line in constraints.splitlines() if line and not line.startswith("#")]
    versions = [(name, wanted, importlib.metadata.version(name)) for name, wanted in pinned]
    return [f"{name} was {wanted} and is {found}" for name, wanted, found in versions if found != wanted]


if __name__ == "__main__":
    if lines := changed(Path(sys.argv[1]).read_text(encoding="utf-8")):
        sys.exit("\n".join(["installing hra_jax replaced what was there:", *lines]))
    importlib.import_module("seqio")
    print(f"{sys.argv[1]}: hra_jax left every package as it was, and seqio imports")
