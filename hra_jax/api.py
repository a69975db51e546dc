"""Recognition from Python: a backbone, and an adapter on it.

Letters: B utterances, S samples, T encoder frames, V vocabulary.
"""

import dataclasses
import functools
import math
import numbers
import os
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from hra_jax.adapters import adapter_folder, methods, task_records, task_rows
from hra_jax.adapters.base import Adapter, no_parameters
from hra_jax.adapters.output_kinds import NEVER
from hra_jax.console import tell
from hra_jax.data import audio, pauses
from hra_jax.data.audio import resample
from hra_jax.decoding import language_models, recognition, step
from hra_jax.decoding import unknown_task as auto
from hra_jax.decoding.decoder import Decoder, kept
from hra_jax.decoding.recognition import Recognition
from hra_jax.decoding.settings import DecodeSettings, decode_settings
from hra_jax.decoding.words import Calibration, stored_calibrations
from hra_jax.errors import UserError
from hra_jax.models import attention_parts, backbone_folder, dtypes
from hra_jax.models.asr import AsrModel
from hra_jax.storage.files import stamp
from hra_jax.storage.trees import flatten, unflatten
from hra_jax.tasks import library
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK, MEAN_TASK, check_name, unknown_task
from hra_jax.text.task_vocabularies import OwnVocabularies, own_vocabularies
from hra_jax.text.vocabularies import BlankVocabulary, Vocabulary, vocabulary_from_json, vocabulary_of_outputs
from hra_jax.training import placement

Waveforms = Sequence[ArrayLike]  # each 1-D, mono, float samples
Recordings = Sequence[ArrayLike | str | os.PathLike]  # or the path of an audio file
_DECODERS = 8  # that a model keeps


class Options(TypedDict, total=False):
    """What recognition takes beside the recordings; `Model.recognise` says what it means."""

    sample_rate: int | None
    tasks: Iterable[str] | None
    decode: DecodeSettings | Mapping[str, Any] | Decoder | None
    phrases: Sequence[Sequence[Any]] | None
    sessions: Sequence[Hashable] | None
    words: bool
    chunk_seconds: float | None


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A frozen speech encoder with its CTC head, on the device or the mesh."""

    files: backbone_folder.BackboneFiles
    params: dict[str, Any]
    dtype: jnp.dtype

    @property
    def fingerprint(self) -> str:
        """Names the weights, the feature settings and the vocabulary; adapters refuse any other."""
        return self.files.fingerprint

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the CTC head."""
        return vocabulary_from_json(self.files.vocabulary)

    @property
    def sample_rate(self) -> int:
        """Hz, of the features; audio at any other rate is resampled."""
        return self.files.features.sample_rate

    @property
    def hop(self) -> int:
        """Samples of an encoder frame."""
        return self.files.features.stride * self.files.encoder.subsampling

    @property
    def chunk_seconds(self) -> float:
        """Seconds of the longest utterances that it was trained on, where its folder says so, or a usual length."""
        return self.files.trained_seconds or pauses.DEFAULT_SECONDS

    def log_probs(self, waveforms: Waveforms, *, sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities without an adapter.

        Args:
          waveforms: a list of 1-D arrays, mono, any lengths: floats of full scale 1, or PCM of 8, 16 or 32 bits.
          sample_rate: their rate, Hz.

        Returns:
          float32 numpy `[B, T, V]` and int32 `[B]`: the valid encoder frames of each.
        """
        return self.alone().log_probs(waveforms, sample_rate=sample_rate)

    def transcribe(self, waveforms: Recordings, **options: Unpack[Options]) -> list[str]:
        """Texts without an adapter; takes what `Model.transcribe` takes."""
        return self.alone().transcribe(waveforms, **options)

    def recognise(self, waveforms: Recordings, **options: Unpack[Options]) -> list[Recognition]:
        """What is said, without an adapter; takes what `Model.recognise` takes."""
        return self.alone().recognise(waveforms, **options)

    def alone(self) -> "Model":
        """It as a model without an adapter, of no task but `__base__`."""
        return Model(self, Adapter(), {}, {}, ())


def load_backbone(
    location: epath.PathLike, mesh: jax.sharding.Mesh | None = None, *, dtype: str = "auto", verify: bool | None = None
) -> Backbone:
    """Loads a backbone; one that is replaced meanwhile is read again.

    Args:
      location: a folder, or `builtin:NAME`.
      mesh: where the weights are placed, see `hra_jax.training.sharding.make_mesh`: large ones are sharded over its
        devices, and each process reads only its own shards. None: the default device.
      dtype: 'float32', 'bfloat16', or 'auto' (float32 on a CPU, else bfloat16).
      verify: whether every weight is compared with its hash: True, before anything else; None, as it is read, where it
        lies on a local disk; False, not at all.

    Raises:
      UserError: no such backbone, a damaged one, or a mesh that does not divide its widths.
    """
    computed = dtypes.compute_dtype(dtype)
    return backbone_folder.read_whole(location, lambda: _load_once(location, mesh, computed, verify))


def _load_once(
    location: epath.PathLike, mesh: jax.sharding.Mesh | None, computed: jnp.dtype, verify: bool | None
) -> Backbone:
    files = backbone_folder.load(location, verify=verify)
    vocabulary_of_outputs(files.vocabulary, files.encoder.vocab_size, where=str(files.folder))
    if mesh is None:
        with files.reading() as read:
            flat = {name: jnp.asarray(read(name), computed) for name in files.tensors.names()}
        params = unflatten(flat, separator=".")
    else:
        shardings = placement.backbone_shardings(mesh, files.features, files.encoder)
        params = backbone_folder.load_params(files, shardings, dtype=computed)
    return Backbone(files, params, computed)


def load_adapter(folder: epath.PathLike, backbone: Backbone, *, slots: int = 0) -> "Model":
    """Loads an exported adapter onto a backbone.

    Args:
      folder: the adapter folder.
      backbone: the backbone that it was trained on.
      slots: rows of the task bank, 0 for as many as there are tasks. More leave room for tasks that `Model.with_task`
        adds without recompiling.

    Raises:
      UserError: not an adapter folder, a damaged one, or one that was trained on another backbone; fewer slots than
        tasks.
    """
    exported = adapter_folder.read_adapter(folder)
    name = repr(backbone.files.info["name"])
    adapter_folder.check_backbone(exported, backbone.fingerprint, name=name, where=str(folder))
    adapter_folder.check_geometry(exported, backbone.files.encoder, where=str(folder))
    names = tuple(exported.tasks)
    if slots and slots < len(names):
        raise UserError(f"slots = {slots}: {folder} has {len(names)} tasks; allowed are 0 or at least as many")
    declared = exported.config["tensors"]["task"]
    # One row at least: nothing can be gathered from a bank without rows.
    size = max(slots, len(names), 1)
    flat = {path: np.zeros((size, *entry["shape"]), np.float32) for path, entry in declared.items()}
    for row, tree in enumerate(exported.tasks.values()):
        for path, leaf in flatten(tree, separator=".").items():
            flat[path][row] = leaf
    tasks = jax.tree.map(jnp.asarray, no_parameters() | unflatten(flat, separator="."))
    shared = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), no_parameters() | exported.shared)
    adapter = methods.from_folder(exported.config)
    own = None
    if adapter.own_vocabulary:
        own = own_vocabularies(exported.config, exported.tasks_json, backbone.vocabulary, where=str(folder))
    trained_seconds = float(exported.config.get("trained_seconds", 0))
    aside = task_records.set_aside(exported.tasks_json)
    entries = {entry["name"]: entry for entry in exported.tasks_json}
    return Model(
        *(backbone, adapter, shared, tasks, names, own, os.fspath(folder), trained_seconds, aside),
        *(exported.records, entries),
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """A backbone with an adapter: every utterance of a batch may belong to another task."""

    backbone: Backbone
    adapter: Adapter
    shared: dict[str, Any]
    rows: dict[str, Any]  # the task bank, leaves [A, ...]
    tasks: tuple[str, ...]  # names of its first rows; the rows after them are free slots
    own: OwnVocabularies | None = None  # of tasks that do not write in the backbone's vocabulary
    folder: str = ""  # where the adapter lies, for errors; none is that of no folder
    trained_seconds: float = 0.0  # of the longest utterances that the adapter was trained on; 0 where that is not known
    # Tasks that the adapter was found to make worse: they are recognised as `__base__`, which is said once.
    set_aside: frozenset[str] = frozenset()
    # What the adapter's folder holds for its tasks beside weights, for who stores the model again.
    records: task_records.Records = dataclasses.field(default_factory=dict, repr=False)
    # What tasks.json of that folder says of its tasks, by name, such as how they are decoded best.
    entries: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, repr=False)
    _decoders: dict[Hashable, Decoder] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def chunk_seconds(self) -> float:
        """Seconds of audio that are recognised at once: the longest trained on, of the adapter or else the backbone."""
        return self.trained_seconds or self.backbone.chunk_seconds

    @property
    def slots(self) -> int:
        """A, the rows of the task bank, free ones included."""
        return next((leaf.shape[0] for leaf in jax.tree.leaves(self.rows)), 0)

    def row(self, name: str) -> dict[str, Any]:
        """The parameters of a task: a tree of float32 numpy arrays.

        Raises:
          UserError: an unknown task, or `__base__`, which has none.
        """
        number = self._row_number(name)
        tree: dict[str, Any] = jax.tree.map(lambda leaf: np.asarray(leaf[number]), self.rows)
        return tree

    def with_task(self, name: str, row: Mapping[str, Any], *, vocabulary: Vocabulary | None = None) -> "Model":
        """The model with one task more, which takes the first free slot.

        Compiled programs stay in use while slots are free. Where none is, the bank grows by one row, and the next batch
        recompiles.

        Args:
          name: of the new task.
          row: its parameters: a tree as `row` and `ExportedAdapter.tasks` have it.
          vocabulary: of the task; needed where tasks have their own, None elsewhere.

        Raises:
          UserError: a name that is not allowed or in use; parameters of another method or shape, or not finite; a
            vocabulary where there must be none, or none, or one that is too large.
        """
        check_name(name, self.tasks)
        own = self._own_with(name, vocabulary)
        given = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(row).items()}
        wanted = {path: leaf.shape[1:] for path, leaf in flatten(self.rows).items()}
        library.check_parameters(name, given, wanted)
        number, tree = len(self.tasks), no_parameters() | unflatten(given)
        if number < self.slots:
            rows = jax.tree.map(lambda leaf, new: leaf.at[number].set(new), self.rows, tree)
        else:
            rows = jax.tree.map(lambda leaf, new: jnp.concatenate([leaf, new[None]]), self.rows, tree)
        return dataclasses.replace(self, rows=rows, tasks=(*self.tasks, name), own=own)

    def _own_with(self, name: str, vocabulary: Vocabulary | None) -> OwnVocabularies | None:
        """The vocabularies of the tasks with that of a new one, where tasks have their own."""
        if self.own is None or self.own.shared is not None:
            if vocabulary is not None:
                whose = "the backbone's" if self.own is None else "one vocabulary"
                raise UserError(
                    f"task {name!r} comes with a vocabulary; allowed is None, as every task here writes in {whose}"
                )
            return self.own
        if vocabulary is None:
            raise UserError(f"task {name!r} comes with no vocabulary; allowed is one, as every task here has its own")
        if vocabulary.size > self.own.size:
            raise UserError(f"task {name!r}: its vocabulary has {vocabulary.size} symbols; allowed: {self.own.size}")
        return dataclasses.replace(self.own, by_task={**self.own.by_task, name: vocabulary})

    def without_task(self, name: str) -> "Model":
        """The model without a task; the tasks after it move up, and their outputs stay the same bits.

        Raises:
          UserError: an unknown task, or `__base__`, which is always there.
        """
        number = self._row_number(name)

        def move_up(leaf: jax.Array) -> jax.Array:
            return jnp.concatenate([leaf[:number], leaf[number + 1 :], jnp.zeros_like(leaf[:1])])

        tasks = tuple(task for task in self.tasks if task != name)
        left = self.set_aside - {name}
        return dataclasses.replace(
            self,
            rows=jax.tree.map(move_up, self.rows),
            tasks=tasks,
            set_aside=left,
            records=task_records.kept(self.records, tasks),
            entries={task: entry for task, entry in self.entries.items() if task != name},
        )

    def mean(self) -> "Model":
        """A model of one task, `__mean__`, whose parameters are the mean of those of all tasks.

        Raises:
          UserError: there is no task, or tasks write in vocabularies of their own, which have no mean.
        """
        if self.own is not None and self.own.shared is None:
            raise UserError("tasks with vocabularies of their own have no mean; allowed: a task or __base__")
        count = len(self.tasks)
        if not count:
            raise UserError(f"task {MEAN_TASK!r}: there is no task to take the mean of; allowed: {BASE_TASK!r}")
        rows = jax.tree.map(lambda leaf: leaf[:count].mean(axis=0, keepdims=True), self.rows)
        return dataclasses.replace(self, rows=rows, tasks=(MEAN_TASK,))

    def _row_number(self, name: str) -> int:
        if name == BASE_TASK:
            raise UserError(f"task {name!r} has no parameters; allowed: {', '.join(self.tasks) or 'none, no task'}")
        return int(self._task_ids([name])[0])

    def vocabulary(self, task: str) -> Vocabulary:
        """The vocabulary in which `task` writes."""
        self._task_ids([task])
        if task in self.set_aside:
            return self.backbone.vocabulary
        return self.backbone.vocabulary if self.own is None else self.own.of(task)

    def _task_ids(self, tasks: Iterable[str]) -> np.ndarray:
        ids = {name: index for index, name in enumerate(self.tasks)} | {BASE_TASK: task_rows.NO_TASK}
        names = list(tasks)
        for name in names:
            if name not in ids:
                raise unknown_task(name, ids)
        return np.array([ids[name] for name in names], np.int32)

    def log_probs(
        self, waveforms: Waveforms, *, sample_rate: int, tasks: Iterable[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of utterances, each through the adapter of its task.

        Args:
          waveforms: a list of 1-D arrays, mono, any lengths: floats of full scale 1, or PCM of 8, 16 or 32 bits.
          sample_rate: their rate, Hz; resampled to the backbone's.
          tasks: a task name per waveform, `__base__` for no adapter; None means `__base__` for all.

        Returns:
          float32 numpy `[B, T, V]` (`[B, T, O]` where tasks have vocabularies of their own) and int32 `[B]`: the valid
          encoder frames of each. Column i is id i of the task's vocabulary.

        Raises:
          UserError: an unknown task; a waveform that is not 1-D, empty, or not finite; log-probabilities that are not
            finite.
        """
        names = self._recognised_as(self._one_task_each(waveforms, tasks))
        return self._run([self._prepare(waveform, sample_rate) for waveform in waveforms], names)

    def _one_task_each(self, waveforms: Recordings, tasks: Iterable[str] | None) -> list[str]:
        """The task of every waveform.

        Raises:
          UserError: unknown tasks, or as `recognition.one_task_each`.
        """
        names = recognition.one_task_each(waveforms, tasks)
        self._task_ids(name for name in names if name != AUTO_TASK)
        return names

    def _chosen(
        self,
        waveforms: Sequence[np.ndarray],
        tasks: Sequence[str],
        sessions: Sequence[Hashable] | None,
        longest_seconds: float,
    ) -> list[str]:
        """The tasks with one of the adapter's, or `__base__`, in place of `__auto__`."""
        if sessions is not None and len(sessions) != len(waveforms):
            raise UserError(f"{len(sessions)} sessions for {len(waveforms)} recordings: one for each is needed")
        asked = [number for number, task in enumerate(tasks) if task == AUTO_TASK]
        lengths: dict[str, Any] = {"sample_rate": self.backbone.sample_rate, "longest_seconds": longest_seconds}
        parts = []
        for number in asked:
            found = pauses.chunks(waveforms[number], self.backbone.hop, **lengths)
            parts.append([waveforms[number][chunk.start : chunk.stop] for chunk in found])
        choices = self.choose_tasks(parts, None if sessions is None else [sessions[number] for number in asked])
        chosen = dict(zip(asked, (choice.task for choice in choices), strict=True))
        return [chosen.get(number, task) for number, task in enumerate(tasks)]

    def _recognised_as(self, tasks: Sequence[str]) -> list[str]:
        """What recognises for every task: it, or `__base__` where it is set aside, which is said once."""
        for name in sorted(self.set_aside.intersection(tasks)):
            _say_set_aside(self.folder, name)
        return [BASE_TASK if name in self.set_aside else name for name in tasks]

    def _prepare(self, samples: ArrayLike | str | os.PathLike, sample_rate: int | None) -> np.ndarray:
        if isinstance(samples, str | os.PathLike):
            try:
                return audio.decode_file(os.fspath(samples), self.backbone.sample_rate)
            except audio.AudioError as error:
                raise UserError(f"{os.fspath(samples)}: {error}") from error
        waveform = audio.from_array(samples, what="a waveform")
        if not isinstance(sample_rate, numbers.Real) or not 1 <= sample_rate < math.inf:
            raise UserError(f"sample_rate = {sample_rate!r}: allowed are numbers of Hz from 1")
        return resample(waveform, sample_rate, self.backbone.sample_rate)

    def _run(self, waveforms: Sequence[np.ndarray], tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if not waveforms:
            return np.zeros((0, 0, self.backbone.vocabulary.size), np.float32), np.zeros(0, np.int32)
        count = len(waveforms)
        batch, lengths = step.padded(waveforms, least=self.backbone.sample_rate)
        index = np.full(len(batch), task_rows.NO_TASK, np.int32)
        index[:count] = self._task_ids(tasks)
        symbols = None
        if self.own is not None:
            symbols = np.stack([self.own.symbols(task) for task in [*tasks, *[BASE_TASK] * (len(batch) - count)]])
        # How many rows are in use is an argument, so that the same program serves while free slots are filled.
        used = np.int32(len(self.tasks))
        log_probs, frames = step.ALONE(
            self._encoder, self.backbone.params, self.shared, self.rows, used, batch, lengths, index, symbols
        )
        frames = np.asarray(frames)[:count]
        log_probs = np.asarray(log_probs)[:count, : max(int(frames.max()), 1)]
        step.check_finite(log_probs, frames, tasks, backbone=str(self.backbone.files.folder), adapter=self.folder)
        if self.own is None:
            return log_probs, frames
        columns = np.stack([self.own.columns(task) for task in tasks])
        log_probs = np.take_along_axis(log_probs, columns[:, None, :], axis=2)
        # What a vocabulary does not have is impossible, not just unlikely.
        return np.where(log_probs > NEVER / 2, log_probs, -np.inf), frames

    @property
    def _encoder(self) -> AsrModel:
        return AsrModel(
            self.backbone.files.features,
            self.backbone.files.encoder,
            adapter=self.adapter,
            attention_block=attention_parts.for_platform(jax.default_backend()),
            dtype=self.backbone.dtype,
        )

    def voices(self, waveforms: Waveforms, *, sample_rate: int) -> auto.Heard:
        """How utterances sound to the adapter, whatever their task, and what the backbone alone makes of them.

        Args:
          waveforms, sample_rate: as for `log_probs`.

        Raises:
          UserError: as `log_probs`.
        """
        return self._listen([self._prepare(waveform, sample_rate) for waveform in waveforms])

    def _listen(self, waveforms: Sequence[np.ndarray]) -> auto.Heard:
        batch, lengths = step.padded(waveforms, least=self.backbone.sample_rate)
        count = len(waveforms)
        found = step.WITH_VOICE(self._encoder, self.backbone.params, self.shared, self.rows, batch, lengths)
        log_probs, frames, voices = (np.asarray(part)[:count] for part in found)
        log_probs = log_probs[:, : max(int(frames.max()), 1)]
        where = {"backbone": str(self.backbone.files.folder), "adapter": self.folder}
        step.check_finite(log_probs, frames, [BASE_TASK] * count, **where)
        writes = not isinstance(self.backbone.vocabulary, BlankVocabulary)
        return auto.Heard(voices, log_probs if writes else None, frames)

    def choose_tasks(
        self, parts: Sequence[Sequence[np.ndarray]], sessions: Sequence[Hashable] | None = None
    ) -> list[auto.Choice]:
        """The task of each of some utterances of which nobody says it; see `decoding.unknown_task`.

        Args:
          parts: of each utterance its waveforms, float32 at the backbone's rate; several where it is long.
          sessions: of each utterance; those with the same one are by one voice. None, for all or for one: by itself.

        Raises:
          UserError: the adapter does not say how its tasks sound; the line has the command that has it say so.
        """
        voices = auto.voices_of(self.records, self.tasks, where=self.folder, aside=self.set_aside)
        given = [None] * len(parts) if sessions is None else sessions
        return auto.choose(
            parts,
            [object() if session is None else session for session in given],
            voices=voices,
            listen=self._listen,
            recognise=self._run,
            blank_of=lambda task: self.vocabulary(task).blank_id,
        )

    def transcribe(self, waveforms: Recordings, **options: Unpack[Options]) -> list[str]:
        """The texts of recordings: those of `recognise`, which says what it takes."""
        return [found.text for found in self.recognise(waveforms, **options)]

    def recognise(
        self,
        waveforms: Recordings,
        *,
        sample_rate: int | None = None,
        tasks: Iterable[str] | None = None,
        decode: DecodeSettings | Mapping[str, Any] | Decoder | None = None,
        phrases: Sequence[Sequence[Any]] | None = None,
        sessions: Sequence[Hashable] | None = None,
        words: bool = False,
        chunk_seconds: float | None = None,
    ) -> list[Recognition]:
        """What is said in recordings, each through the adapter of its task; long ones are cut at pauses.

        Args:
          waveforms: 1-D arrays, mono, any lengths, of floats of full scale 1 or of PCM of 8, 16 or 32 bits; or paths of
            audio files.
          sample_rate: of the arrays, Hz; resampled to the backbone's.
          tasks: a task name per recording, `__base__` for no adapter; None means `__base__` for all. `__auto__` is
            the task that sounds most like the recording, see `choose_tasks`; `Recognition.task` says which.
          decode: the keys `decode.*` of a configuration, such as {"lm": "adapter"}; None decodes greedily. Or what
            `decoder` gave.
          phrases: of each recording the words and phrases that are likelier than elsewhere; None for none.
          sessions: of each recording; those of `__auto__` with the same one are by one voice. None, for all or for
            one: by itself.
          words: whether words are wanted, with their times and confidences.
          chunk_seconds: the longest that is recognised at once; None for what was trained on, `Model.chunk_seconds`.

        Raises:
          UserError: as `log_probs`; a file that cannot be read; a chunk that is not a number of seconds above 0; as
            `decoder`; phrases that the vocabulary cannot write.
        """
        longest = self.chunk_seconds if chunk_seconds is None else pauses.check_seconds(chunk_seconds)
        names = self._one_task_each(waveforms, tasks)
        if phrases is not None and len(phrases) != len(names):
            raise UserError(f"{len(phrases)} lists of phrases for {len(names)} recordings: one for each is needed")
        decoder = decode if isinstance(decode, Decoder) else self.decoder(decode, names, phrases=phrases is not None)

        def check_phrases() -> None:
            for number, own in enumerate([()] * len(names) if phrases is None else phrases):
                if names[number] != AUTO_TASK:  # then it is known who writes them
                    decoder.check_phrases(names[number], own, where=f"phrases[{number}]")

        check_phrases()
        prepared = [self._prepare(waveform, sample_rate) for waveform in waveforms]
        if AUTO_TASK in names:
            names = self._chosen(prepared, names, sessions, longest)
            check_phrases()
        used = self._recognised_as(names)
        if BASE_TASK in used and isinstance(self.backbone.vocabulary, BlankVocabulary):
            raise UserError(
                f"task {BASE_TASK!r}: the backbone {self.backbone.files.info['name']!r} has no output layer of its "
                f"own; allowed: {', '.join(self.tasks) or 'none, an adapter with an output layer is needed'}"
            )
        return recognition.recognise(
            prepared,
            names,
            lambda heard, rows: self._run(heard, [used[row] for row in rows]),
            decoder=decoder,
            vocabularies={name: self.vocabulary(name) for name in names},
            phrases=phrases,
            hop=self.backbone.hop,
            sample_rate=self.backbone.sample_rate,
            longest_seconds=longest,
            words=words,
            # A task that is set aside is not what was calibrated.
            calibrations={name: self.calibrations[name] for name in set(used).intersection(self.calibrations)},
        )

    @functools.cached_property
    def calibrations(self) -> dict[str, Calibration]:
        """How sure words are, and by how much they come late, of the tasks for which `tasks calibrate` measured it.

        Raises:
          UserError: what the adapter holds of it is no calibration.
        """
        return stored_calibrations(self.entries.values(), where=self.folder)

    @property
    def held(self) -> language_models.Held:
        """What the adapter holds of language models and weights."""
        return language_models.held(self.entries.values(), self.records, where=self.folder)

    def decoder(
        self, decode: DecodeSettings | Mapping[str, Any] | None, tasks: Iterable[str], *, phrases: bool = True
    ) -> Decoder:
        """What decodes recordings of some tasks; `Decoder.facts` says with what.

        Args:
          decode, tasks: as for `recognise`.
          phrases: whether recordings may bring some of their own.

        Raises:
          UserError: settings that are not allowed; a language model that is not there or of another vocabulary.
        """
        asked = set(tasks)
        if AUTO_TASK in asked:  # which may be any
            asked = asked - {AUTO_TASK} | {*self.tasks} - self.set_aside
            if not isinstance(self.backbone.vocabulary, BlankVocabulary):
                asked.add(BASE_TASK)
        settings, names = decode_settings(decode), tuple(sorted(asked))
        settings.check_used(phrases=phrases)
        settings.check_tasks({*self.tasks, *self.entries, BASE_TASK, MEAN_TASK})  # a mean has entries of its tasks
        written = {name: self.vocabulary(name) for name in names}
        made = functools.partial(Decoder, settings, vocabularies=written, adapter=self.held)
        return kept(self._decoders, (settings, names, *map(stamp, settings.files)), made, most=_DECODERS)


@functools.cache
def _say_set_aside(folder: str, task: str) -> None:
    """Says once that a task is not recognised with its adapter."""
    tell(f"{folder}: task {task!r} is set aside: it is recognised by the backbone alone", to=sys.stderr)
