"""Damaged and hostile audio files: each is read or refused in one line; nothing crashes, hangs or fills the memory.

The long form: HRA_FUZZ_INPUTS=1000 HRA_FUZZ_SEEDS=1,2,3 pytest --slow tests/data/test_fuzzed_audio.py -s
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from reference import audio_fuzzer

FUZZER = pathlib.Path(audio_fuzzer.__file__)


def fuzz(folder, *, seed, count):
    """Runs the fuzzer; returns its summary. What kills it fails the test, with the file that did."""
    command = [sys.executable, str(FUZZER), str(seed), str(count), str(folder)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"status {done.returncode} at {lines[-1:]}, seed {seed}: {done.stderr[-3000:]}"
    assert done.stderr == "", "something prints between the lines"
    summary = json.loads(lines[-1])
    assert summary["good"] + sum(summary["errors"].values()) == count
    assert summary["memory"] < audio_fuzzer.MOST_BYTES
    print(f"seed {seed}: {count} files, {summary}")
    return summary


def test_damaged_files_are_read_or_refused(tmp_path):
    summary = fuzz(tmp_path, seed=int(os.environ.get("HRA_SEED", "0")), count=250)
    assert summary["good"] > 50 and summary["errors"]["undecodable_audio"] > 50


@pytest.mark.slow(minutes=0.5)
@pytest.mark.parametrize("seed", os.environ.get("HRA_FUZZ_SEEDS", "1").split(","))
def test_many_damaged_files_are_read_or_refused(tmp_path, seed):
    fuzz(tmp_path, seed=int(seed), count=int(os.environ.get("HRA_FUZZ_INPUTS", "1000")))


def decoded_by_itself(path):
    """What a process that only decodes a file says of it: the number of samples or the kind of error; its memory."""
    script = (
        "import sys\n"
        "from reference.audio_fuzzer import most_memory\n"
        "from hra_jax.data import audio\n"
        "try:\n"
        "    found = audio.decode_file(sys.argv[1], 16000).size\n"
        "except audio.AudioError as error:\n"
        "    found = error.kind\n"
        "print(found, most_memory())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found, memory = done.stdout.split()
    return found, int(memory)


@pytest.mark.slow(minutes=0.5)
def test_a_small_file_of_many_hours_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 16000, 1) as sound:
        for _ in range(6 * 60):
            sound.write(np.zeros(60 * 16000, np.int16))
    assert path.stat().st_size < 2**21
    found, memory = decoded_by_itself(path)
    assert found == "too_long" and memory < audio_fuzzer.MOST_BYTES


@pytest.mark.slow(minutes=0.5)
def test_an_hour_takes_the_memory_of_its_samples(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((100, 2), np.int16), 44100)
    size = 3600 * 44100 * 2 * 2  # bytes of an hour, zeros that take no room on the disk
    content = bytearray(path.read_bytes())
    content[40:44] = size.to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, 44 + size)
    found, memory = decoded_by_itself(path)
    assert int(found) == 3600 * 16000 and memory < 3600 * 16000 * 4 + 2**28
