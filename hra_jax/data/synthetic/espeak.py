"""eSpeak NG through ctypes: text to samples, the same samples every time.

eSpeak NG carries state from one utterance to the next, so a process that speaks two sentences does not repeat the
second one; and it seeds its random numbers (breath, whisper) from the clock. An utterance is therefore spoken with its
own seed in a freshly forked child of a process that has initialised the library and spoken one fixed warm-up sentence:
`in_fork` below. This module imports nothing that starts threads, because a process with threads cannot fork safely.
"""

import ctypes
import functools
import os
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import espeakng_loader
import numpy as np

from hra_jax.console import near_matches
from hra_jax.errors import UserError
from hra_jax.run import children

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, before espeak_Synth returns, without a thread
_DO_NOT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: report a missing data folder instead of ending the process
_UTF8 = 1  # espeakCHARS_UTF8
_CALLBACK_MILLISECONDS = 1000  # samples per callback; fewer callbacks cost less
_PARAMETERS = {"rate": 1, "volume": 2, "pitch": 3, "pitch_range": 4, "word_gap": 7}  # espeak_PARAMETER
_WARM_UP = "the quick brown fox jumps over the lazy dog"
_NO_VARIANT = ""

_SAMPLES = ctypes.POINTER(ctypes.c_short)
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _SAMPLES, ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """The library, initialised. There can be one in a process: use `library()`."""

    def __init__(self) -> None:
        self._lib = ctypes.cdll.LoadLibrary(espeakng_loader.get_library_path())
        self._lib.espeak_Info.restype = ctypes.c_char_p
        self._lib.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        data = espeakng_loader.get_data_path()
        self.sample_rate = self._lib.espeak_Initialize(
            _SYNCHRONOUS, _CALLBACK_MILLISECONDS, os.fsencode(data), _DO_NOT_EXIT
        )
        if self.sample_rate <= 0:
            raise UserError(
                f"eSpeak NG could not be initialised with its data folder {data}; reinstall espeakng-loader"
            )
        self.version = self._lib.espeak_Info(None).decode()
        self._pieces: list[bytes] = []
        self._callback = _CALLBACK(self._receive)  # kept alive here: the library holds only its address
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    def speak(
        self, text: str, *, voice: str, variant: str = _NO_VARIANT, seed: int = 1, **parameters: int
    ) -> np.ndarray:
        """Synthesizes one utterance; repeatable only as the first call in a child of `in_fork`.

        Args:
          text: what to say.
          voice: a voice name (see `voices`).
          variant: a variant name (see `variants`), or "" for the voice as it is.
          seed: of the noise in breath and whisper.
          **parameters: rate (words per minute), pitch, pitch_range (0 to 99), volume (0 to 200), word_gap (units of 10
            ms).

        Returns:
          int16 [S] samples at `sample_rate` Hz, mono.

        Raises:
          UserError: unknown voice, variant or parameter.
        """
        unknown = set(parameters) - set(_PARAMETERS)
        if unknown:
            raise UserError(f"unknown speech parameter {min(unknown)!r}; allowed: {', '.join(_PARAMETERS)}")
        check_voice(voice, variant)
        name = f"{voices()[voice]}+{variant}" if variant else voices()[voice]
        if self._lib.espeak_SetVoiceByName(name.encode()) != 0:
            raise UserError(f"eSpeak NG refuses the voice {name!r}")
        for key, value in parameters.items():
            self._lib.espeak_SetParameter(_PARAMETERS[key], int(value), 0)
        # Initialisation seeds both generators from the clock: breath and whisper would differ from process to process.
        self._lib.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        ctypes.CDLL(None).srand(seed)
        self._pieces.clear()
        encoded = text.encode()
        self._lib.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
        return np.frombuffer(b"".join(self._pieces), np.int16)


@functools.cache
def library() -> Espeak:
    """The one eSpeak NG of this process, warmed up by a fixed sentence."""
    espeak = Espeak()
    espeak.speak(_WARM_UP, voice="en-us", rate=175)
    return espeak


@functools.cache
def variants() -> list[str]:
    """Names of the variants that can follow a voice (`f3`, `whisper`, `croak`), sorted."""
    folder = pathlib.Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@functools.cache
def voices() -> dict[str, str]:
    """What to load for each name of a voice: its own name (`en`, `en-us`) or its language's code (`en-gb`)."""
    # Read from the data files: the library's own list would have to be asked for in this process, and change its state.
    files = [path for path in (pathlib.Path(espeakng_loader.get_data_path()) / "lang").rglob("*") if path.is_file()]
    found = {path.name.lower(): path.name.lower() for path in files}
    for path in sorted(files):
        codes = [
            line.split()[1] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("language ")
        ]
        found.setdefault(codes[0].lower() if codes else path.name.lower(), path.name.lower())
    return found


def check_voice(voice: str, variant: str = _NO_VARIANT) -> None:
    """Raises UserError, in one line with near matches, if the voice or its variant does not exist."""
    # eSpeak NG itself takes an unknown variant for no variant, without a word.
    for kind, value, allowed in (("voice", voice, sorted(voices())), ("variant", variant, [_NO_VARIANT, *variants()])):
        if value not in allowed:
            raise UserError(f"unknown eSpeak NG {kind} {value!r}; {near_matches(str(value), filter(None, allowed))}")


def in_fork(function: Callable[[], Any]) -> Any:
    """Runs a function in a forked child and returns its (picklable) value.

    Raises:
      UserError: the function raised UserError.
      RuntimeError: the child died, or raised OSError, ValueError or RuntimeError.
    """
    answer: tuple[str | None, Any]
    read_end, write_end = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            children.die_with(parent)
            os.close(read_end)
            try:
                answer = (None, function())
            except UserError as error:
                answer = ("user", str(error))
            except (OSError, ValueError, RuntimeError) as error:
                answer = ("error", f"{type(error).__name__}: {error}")
            with os.fdopen(write_end, "wb") as pipe:
                pickle.dump(answer, pipe)
            status = 0
        finally:
            os._exit(status)  # never the parent's exit handlers, never its buffered output
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if status != 0 or not content:
        raise RuntimeError(f"a speech synthesis process ended with status {os.waitstatus_to_exitcode(status)}")
    kind, value = pickle.loads(content)
    if kind == "user":
        raise UserError(value)
    if kind == "error":
        raise RuntimeError(value)
    return value
