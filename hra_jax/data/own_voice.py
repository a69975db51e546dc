"""One's own voice in a notebook: sentences are read aloud into the browser, or lie in a folder as files.

Only a notebook in Colab can ask the browser for its microphone. What was recorded is kept in the folder and is not
asked for again.
"""

import base64
import importlib
import io
import json
from collections.abc import Callable, Sequence

import numpy as np
import soundfile
from etils import epath

from hra_jax.console import tell
from hra_jax.data import audio
from hra_jax.data.synthetic.rendering import render
from hra_jax.storage.files import make_folder, write_file
from hra_jax.storage.json_files import Kind, read_lines

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")
_RATE = 16000  # Hz, of what the browser records
_STAND_IN = "whisper"  # of the set "tiny-test"

# Shows a sentence with a button; gives its recording as 16-bit samples in base64, '' where there is none.
_RECORD = """
(async (text, rate) => {
  const line = document.createElement("p");
  const button = document.createElement("button");
  button.textContent = "Record";
  line.append(`${text} `, button);
  (document.querySelector("#output-area") ?? document.body).append(line);
  const pressed = () => new Promise((done) => { button.onclick = done; });
  try {
    await pressed();
    const stream = await navigator.mediaDevices.getUserMedia({audio: true});
    const recorder = new MediaRecorder(stream);
    const parts = [];
    recorder.ondataavailable = (event) => parts.push(event.data);
    const stopped = new Promise((done) => { recorder.onstop = done; });
    recorder.start();
    button.textContent = "Stop";
    await pressed();
    recorder.stop();
    await stopped;
    for (const track of stream.getTracks()) track.stop();
    const context = new OfflineAudioContext(1, 1, rate);
    const sound = await context.decodeAudioData(await new Blob(parts).arrayBuffer());
    const samples = Int16Array.from(sound.getChannelData(0), (x) => 32767 * Math.max(-1, Math.min(1, x)));
    const bytes = new Uint8Array(samples.buffer);
    let binary = "";
    for (let at = 0; at < bytes.length; at += 32768) {
      binary += String.fromCharCode(...bytes.subarray(at, at + 32768));
    }
    line.remove();
    return btoa(binary);
  } catch (error) {
    line.textContent = String(error);
    return "";
  }
})
"""


def own_voice(texts: Sequence[str], folder: epath.PathLike, *, sample_rate: int) -> list[tuple[np.ndarray, str]]:
    """Recordings of one speaker, with their texts.

    Args:
      texts: what is to be read aloud. Text n is in the file n of the folder: 01.wav, 02.flac and so on.
      folder: where recordings are looked for, and where those of the browser are kept.
      sample_rate: Hz of the result.

    Returns:
      (float32 [S], text) for each text with a recording. Where there is none at all, those of a synthetic voice, with
      texts of its own, take their place; a line says so.

    Raises:
      AudioError: a recording that cannot be read.
    """
    folder, record = epath.Path(folder), _browser()
    found = []
    for number, text in enumerate(texts, 1):
        path = next((path for suffix in SUFFIXES if (path := folder / f"{number:02d}{suffix}").exists()), None)
        if path is None and record is not None:
            path = _recorded(record, text, folder / f"{number:02d}.flac")
            # Who refuses once is not asked again.
            record = record if path is not None else None
        if path is not None:
            found.append((audio.decode_file(str(path), sample_rate), text))
    if found:
        return found
    tell(
        f"no recordings in {folder}: a synthetic voice takes your place. For your own, put files there:",
        *(f"  {number:02d}.wav: {text}" for number, text in enumerate(texts, 1)),
    )
    return _synthetic(folder, sample_rate=sample_rate)


def _browser() -> Callable[[str], str] | None:
    """What runs a script in the browser and gives what it returns; None where there is none to ask."""
    try:
        output = importlib.import_module("google.colab.output")
    except ImportError:
        return None
    found: Callable[[str], str] = output.eval_js
    return found


def _recorded(record: Callable[[str], str], text: str, path: epath.Path) -> epath.Path | None:
    """The file of a new recording; None where nobody spoke."""
    encoded = record(f"{_RECORD.strip()}({json.dumps(text)}, {_RATE})")
    samples = np.frombuffer(base64.b64decode(encoded), "<i2")
    if not len(samples):
        return None
    stored = io.BytesIO()
    soundfile.write(stored, samples, _RATE, format="FLAC", subtype="PCM_16")
    make_folder(path.parent)
    write_file(path, stored.getvalue())
    return path


def _synthetic(folder: epath.Path, *, sample_rate: int) -> list[tuple[np.ndarray, str]]:
    """Twelve sentences of a synthetic speaker."""
    place = epath.Path(render("tiny-test", folder / "synthetic"))
    kinds: dict[str, Kind] = dict.fromkeys(("audio_filepath", "text", "speaker"), str)
    lines = [
        line
        for split in ("train", "validation", "test")
        for _, line in read_lines(place / f"{split}.jsonl", kinds, what="a manifest")
    ]
    return [
        (audio.decode_file(str(place / line["audio_filepath"]), sample_rate), line["text"])
        for line in lines
        if line["speaker"] == _STAND_IN
    ]
