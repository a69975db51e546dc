"""The process that speaks: one job a line on standard input, one answer a line on standard output.

Each job is done in a forked child (see `espeak.py`), so this module imports neither jax nor tensorflow, whose threads a
fork would lose. Started by `rendering.py`.
"""

import functools
import gc
import hashlib
import io
import json
import os
import sys

import numpy as np
import soundfile
import soxr

from hra_jax.data.synthetic import espeak
from hra_jax.errors import UserError
from hra_jax.storage.files import write_file

_AUDIBLE = 0.01  # of the peak: what is quieter at the ends counts as silence


def _trim(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > _AUDIBLE * np.abs(samples).max(initial=0.0))
    return samples[loud[0] : loud[-1] + 1] if loud.size else samples[:0]


def _noise(rng: np.random.Generator, size: int, *, kind: str) -> np.ndarray:
    """Noise [size] of unit power."""
    noise = rng.standard_normal(size)
    if kind == "pink":  # power falls with 1/f
        spectrum = np.fft.rfft(noise)
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, spectrum.size + 1)), size)
    return noise / np.sqrt(np.mean(noise**2) + 1e-12)


def _room(rng: np.random.Generator, samples: np.ndarray, *, seconds: float, sample_rate: int) -> np.ndarray:
    """Adds exponentially decaying, 10 dB weaker reverberation; longer by its tail."""
    times = np.arange(int(seconds * sample_rate)) / sample_rate
    tail = rng.standard_normal(times.size) * 10 ** (-3 * times / seconds)
    tail *= 10 ** (-10 / 20) / np.sqrt(np.sum(tail**2) + 1e-12)
    tail[0] = 1.0
    size = samples.size + tail.size - 1
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)


def _band(samples: np.ndarray, *, low: float, high: float, sample_rate: int) -> np.ndarray:
    """Band-pass with slopes of 12 dB per octave."""
    frequency = np.fft.rfftfreq(samples.size, 1 / sample_rate) + 1e-3
    gain = 1 / np.sqrt(1 + (low / frequency) ** 4) / np.sqrt(1 + (frequency / high) ** 4)
    return np.fft.irfft(np.fft.rfft(samples) * gain, samples.size)


def _pause(rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    seconds = rng.uniform(0, 0.05) if rng.random() < 0.5 else rng.uniform(0.05, 0.3)
    return np.zeros(int(seconds * sample_rate))


def record(spoken: np.ndarray, *, spoken_rate: int, sample_rate: int, speaker: dict, seed: list[int]) -> np.ndarray:
    """Puts speech into the speaker's recording condition.

    Args:
      spoken: int16 [S] as eSpeak NG gave it, at `spoken_rate` Hz.
      spoken_rate: Hz.
      sample_rate: of the result, Hz.
      speaker: the fields of a `Speaker`.
      seed: words that determine pauses, noise, room and level.

    Returns:
      int16 [S'] at `sample_rate`: stretched, in its room and band, with pauses of 0 to 0.3 s at both ends, noise, and a
      peak level between 0.2 and 0.9 of full scale.

    Raises:
      ValueError: the speech is silence.
    """
    rng = np.random.default_rng(seed)
    samples = _trim(spoken.astype(np.float64) / 32768)
    if not samples.size:
        raise ValueError("eSpeak NG spoke nothing")
    samples = soxr.resample(samples, spoken_rate * speaker["stretch"], sample_rate, quality="HQ")
    power = np.mean(samples**2)
    if speaker["room_seconds"]:
        samples = _room(rng, samples, seconds=speaker["room_seconds"], sample_rate=sample_rate)
    samples = np.concatenate([_pause(rng, sample_rate), samples, _pause(rng, sample_rate)])
    if speaker["noise_snr_db"] is not None:
        level = np.sqrt(power * 10 ** (-speaker["noise_snr_db"] / 10))
        samples = samples + level * _noise(rng, samples.size, kind=speaker["noise_kind"])
    if speaker["band"]:
        samples = _band(samples, low=speaker["band"][0], high=speaker["band"][1], sample_rate=sample_rate)
    samples *= rng.uniform(0.2, 0.9) / np.abs(samples).max()
    return np.round(samples * 32767).astype(np.int16)


def render_job(job: dict) -> dict:
    """Speaks one job into its file; returns the number of samples and their hash. For a forked child only."""
    engine, speaker = espeak.library(), job["speaker"]
    spoken = engine.speak(
        job["text"],
        voice=speaker["voice"],
        variant=speaker["variant"],
        seed=job["seed"][-1] + 1,
        rate=speaker["rate"],
        pitch=speaker["pitch"],
        pitch_range=speaker["pitch_range"],
        word_gap=speaker["word_gap"],
    )
    samples = record(
        spoken, spoken_rate=engine.sample_rate, sample_rate=job["sample_rate"], speaker=speaker, seed=job["seed"]
    )
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, job["sample_rate"], format="FLAC", subtype="PCM_16")
    # Not written by soundfile, which does not say that a disk is full.
    write_file(job["path"], encoded.getvalue(), durable=False)
    return {"samples": int(samples.size), "sha256": hashlib.sha256(samples.tobytes()).hexdigest()}


def main() -> None:
    """Answers every job of standard input; a job that fails answers with its error and ends the process.

    Where nobody is there any more to take an answer, the process ends.
    """
    jobs = [json.loads(line) for line in sys.stdin]
    version = espeak.library().version
    gc.freeze()  # the children share the parent's memory instead of copying it
    for job in jobs:
        try:
            answer = espeak.in_fork(functools.partial(render_job, job))
        except (UserError, RuntimeError) as error:
            answer = {"error": f"{job['speaker']['name']}, {job['text']!r}: {error}"}
        try:
            print(json.dumps({"number": job["number"], "espeak": version, **answer}), flush=True)
        except BrokenPipeError:
            os._exit(1)  # without a word, as there would be one about what is still buffered
        if "error" in answer:
            return


if __name__ == "__main__":
    main()
