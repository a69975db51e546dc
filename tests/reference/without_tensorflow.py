"""Fits an adapter in a process in which neither TensorFlow nor seqio is installed, as far as Python can tell.

python tests/reference/without_tensorflow.py MANIFEST SETTINGS_JSON STEPS OUTPUT_NPZ
"""

import sys

ABSENT = ("tensorflow", "seqio", "tensorflow_datasets")


class Without:
    """A finder of modules that does not find those of ABSENT."""

    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def main(manifest: str, settings: str, steps: str, output: str) -> None:
    """Fits, and writes the weights by path."""
    import json
    from pathlib import Path

    import numpy as np
    import soundfile

    import hra_jax
    from hra_jax.storage.trees import flatten

    path, examples = Path(manifest), {}
    for row in map(json.loads, path.read_text().splitlines()):
        samples, rate = soundfile.read(path.parent / row["audio_filepath"], dtype="float32")
        examples.setdefault(row["speaker"], []).append((samples, row["text"]))
    backbone = hra_jax.load_backbone("builtin:tiny")
    model = hra_jax.fit(backbone, examples, sample_rate=rate, steps=int(steps), settings=json.loads(settings))
    for name in ABSENT:
        assert not [found for found in sys.modules if found.partition(".")[0] == name], name
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise AssertionError(f"{name} can be imported")
    found = {f"shared.{name}": leaf for name, leaf in flatten(model.shared, separator=".").items()}
    for task in model.tasks:
        found |= {f"{task}.{name}": leaf for name, leaf in flatten(model.row(task), separator=".").items()}
    np.savez(output, **{name: np.asarray(leaf) for name, leaf in found.items()})


if __name__ == "__main__":
    sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
    main(*sys.argv[1:])
