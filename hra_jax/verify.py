"""Checks that stored files are what was written: of a run, an adapter, a backbone, an export, or a data set.

    python -m hra_jax.verify runs/quickstart
    python -m hra_jax.verify runs/quickstart/adapter
    python -m hra_jax.verify my_backbone
    python -m hra_jax.verify served
    python -m hra_jax.verify data/quickstart
    python -m hra_jax.verify data/own/train.jsonl
    python -m hra_jax.verify data/own/shards
    python -m hra_jax.verify gs://bucket/runs/own

One flipped byte in any file is found where its checksum was written down: runs, adapters and backbones of this version,
shards, and rendered speech. Of recordings that have none, those are named that cannot be decoded. In a bucket
checkpoints have no list of files: their arrays and values are compared. The exit status is 2 where anything is damaged.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from tqdm import tqdm

from hra_jax import cli
from hra_jax.adapters import adapter_folder
from hra_jax.console import stdout, table
from hra_jax.data import manifest, shards
from hra_jax.errors import DamagedError, UserError
from hra_jax.models import backbone_folder
from hra_jax.run import workdirs
from hra_jax.storage import checksums, folders, safetensors
from hra_jax.storage.files import check_regular, is_remote, write_file
from hra_jax.storage.json_files import MOST_BYTES, json_text, read_object
from hra_jax.storage.remote import unavailable
from hra_jax.storage.row_log import RowLog
from hra_jax.training.stored_checkpoint import COMPLETE, StoredCheckpoint

_MOST_SHOWN = 20  # damaged files of one part
_RENDERED = "synthesis.json"
_EXPORTED = "serving.json"  # in what hra_jax.export writes
_UNLISTED = "it has no files.json: arrays and values were compared with its own checksums, other files not at all"
_UNCOMPARED = "it has no checksums, as it is of 0.1.0: it was read, and compared with nothing"

Told = Callable[[int], object]


class Part(NamedTuple):
    """What was found out about one part of what was checked.

    Attributes:
      name: the part, such as `checkpoints/200`.
      files: how many files were checked.
      faults: (file, what is wrong with it).
      note: what was not checked, and why; '' where all was.
    """

    name: str
    files: int
    faults: list[tuple[str, str]]
    note: str = ""


def verify(path: epath.PathLike, *, told: Told = lambda count: None) -> list[Part]:
    """Checks whatever lies at a path.

    Args:
      path: a work directory, an adapter folder, a backbone folder, an export for servers, a folder of shards, a
        rendered data set, a folder of manifests, or a manifest.
      told: called with the bytes of each piece that has been read.

    Returns:
      What was found, part by part.

    Raises:
      UserError: nothing of these kinds is there.
      StorageUnavailable: a bucket does not answer.
    """
    path = epath.Path(path)
    for folder in (path, path / workdirs.ADAPTER):
        folders.put_back(folder)
    if path.is_file():
        return [_manifest(path)]
    if (path / adapter_folder.CONFIG_FILE).exists():
        return [_adapter(path, told=told)]
    if (path / _EXPORTED).exists():
        return [_listed(path, f"export {path.name}", told=told, without="its listing was removed")]
    if (path / backbone_folder.SETTINGS).exists():
        return [_backbone(path)]
    if (path / workdirs.CHECKPOINTS).is_dir() or (path / workdirs.CONFIG).exists():
        return list(_run(path, told=told))
    if shards.is_shards(path):
        return [_listed(path, f"shards {path.name}", told=told, without="the command that makes them was stopped")]
    if (path / _RENDERED).exists():
        return [_listed(path, "rendered speech", told=told, without="it was rendered by an earlier version")]
    manifests = sorted(path.glob("*.jsonl")) if path.is_dir() else []
    if not manifests:
        kinds = "run, adapter, backbone, export, data set or manifest"
        raise UserError(f"{str(path)!r} is no {kinds}; allowed: one of these")
    return [_manifest(file) for file in manifests]


def _listed(folder: epath.Path, name: str, *, told: Told, without: str) -> Part:
    """A folder that has a listing of its files."""
    found = checksums.check_listing(folder, told=told)
    if found is None:
        return Part(name, 0, [], f"no checksums of files: {without}")
    return Part(name, len(found), [(file, fault) for file, fault in found.items() if fault])


def _run(workdir: epath.Path, *, told: Told) -> Iterator[Part]:
    without = "in a bucket they have none" if is_remote(workdir) else "the run is not finished, or of 0.1.0"
    yield _listed(workdir, "results and settings", told=told, without=without)
    folder = workdir / workdirs.CHECKPOINTS
    for step in sorted(workdirs.checkpoint_steps(workdir)):
        part = _checkpoint(folder, step, told=told)
        if (folder / str(step)).exists():  # else the run has deleted it meanwhile, as it has newer ones
            yield part
    if (workdir / workdirs.ADAPTER).is_dir():
        yield _adapter(workdir / workdirs.ADAPTER, told=told)._replace(name=workdirs.ADAPTER)
    if (workdir / workdirs.BACKBONE).is_dir():
        yield _backbone(workdir / workdirs.BACKBONE)._replace(name=workdirs.BACKBONE)


def _checkpoint(folder: epath.Path, step: int, *, told: Told) -> Part:
    """A checkpoint: by the listing of its files, or else by the checksums that it holds."""
    name = f"{workdirs.CHECKPOINTS}/{step}"
    if is_remote(folder) and not (folder / str(step) / COMPLETE).exists():
        return Part(name, 0, [], "it is not complete: a run removes it when it starts again")
    part = _listed(folder / str(step), name, told=told, without="")
    if part.note:
        part = _unlisted(folder, step, name)
    return part._replace(faults=part.faults + _rows(folder, step))


def _unlisted(folder: epath.Path, step: int, name: str) -> Part:
    """A checkpoint that has no listing: all that a run would take from it."""
    from hra_jax.training.checkpoints import Checkpoints  # slow to import

    walk = (folder / str(step)).walk() if is_remote(folder) else []
    count = sum(len(names) for _, _, names in walk) or len(checksums.files_of(folder / str(step)))
    odd = checksums.endless_files(folder / str(step))
    if odd:  # Orbax would wait for them
        return Part(name, count, [(file, "is not a regular file") for file in odd], _UNLISTED)
    try:
        with Checkpoints(folder, keep_latest=1, keep_best=0, every_steps=1, read_only=True) as checkpoints:
            compared = checkpoints.check(step)
    except UserError as error:
        return Part(name, count, [(str(step), _fault(error).removeprefix(f"{folder}: "))], _UNLISTED)
    return Part(name, count, [], _UNLISTED if compared else _UNCOMPARED)


def _rows(folder: epath.Path, step: int) -> list[tuple[str, str]]:
    """Faults of the segments of rows that a checkpoint holds."""
    faults = []
    try:
        logs = StoredCheckpoint(folder / str(step)).segments()
    except UserError as error:
        return [("rows/metadata", _fault(error))]
    for log, segments in logs.items():
        for segment in segments:
            file = folder / "rows" / log / f"{segment}.safetensors"
            try:
                for _ in RowLog(file.parent, read_only=True).read([segment]):
                    pass
                fault = _header_fault(file)
            except UserError as error:
                fault = _fault(error).removeprefix(f"{file}: ")
            if fault:
                faults.append((f"rows/{log}/{file.name}", fault))
    return faults


def _fault(error: Exception) -> str:
    """What an error says of a file; of storage that does not answer now it says nothing, and is raised."""
    # TensorStore says DATA_LOSS of damage; who found damage has told it from what may answer later.
    away = None if isinstance(error, DamagedError) else unavailable(error)
    if away is not None:
        raise away from error
    return str(error)


def _header_fault(file: epath.Path) -> str:
    """What is wrong with the header of a safetensors file, whose tensors are checked elsewhere: '' if nothing."""
    try:
        check_regular(file)
        with file.open("rb") as stream:
            header = safetensors.read_header(stream, file.stat().length)
            length = min((entry.start for entry in header.tensors.values()), default=stream.tell())
            stream.seek(0)
            content = stream.read(length)
    except (OSError, ValueError) as error:
        return _fault(error)
    entries = sorted(header.tensors.items(), key=lambda pair: (pair[1].start, pair[1].stop))
    kinds = {name: (safetensors.DTYPES[entry.dtype], entry.shape) for name, entry in entries}
    return "" if safetensors.header_bytes(kinds, header.metadata) == content else "its header is not what was written"


def _adapter(folder: epath.Path, *, told: Told) -> Part:
    path, name = folder / adapter_folder.CONFIG_FILE, f"adapter {folder.name}"
    # First what it is: then its files have the sizes that it says, and its hashes are an object.
    try:
        adapter_folder.read_adapter(folder)
    except DamagedError:
        pass  # each file is compared below
    except UserError as error:
        own = (file for file in adapter_folder.OWN_FILES if str(error).startswith(f"{folder / file}"))
        return Part(name, 0, [(next(own, path.name), _fault(error))])
    config = read_object(path)
    hashes = {"sha256": {}, **config}["sha256"]
    note = "" if hashes else "it has no hashes: exported by 0.1.0, or they were removed"
    faults = [(file, fault) for file in sorted(hashes) if (fault := _unlike(folder, file, config, told=told))]
    return Part(name, len(hashes), faults, note)


def _unlike(folder: epath.Path, file: str, config: dict[str, Any], *, told: Told) -> str:
    """How a file of an adapter folder differs from its hash in adapter_config.json; '' if it does not."""
    path = folder / file
    if file not in adapter_folder.OWN_FILES:
        return f"is no file of an adapter; allowed: {', '.join(adapter_folder.OWN_FILES)}"
    try:
        if file == adapter_folder.CARD_FILE and path.stat().length > MOST_BYTES:
            return f"has {path.stat().length:,} bytes; allowed: at most {MOST_BYTES:,}"
        if file == adapter_folder.CONFIG_FILE:
            same = config["sha256"][file] == adapter_folder.own_sha256(config) and path.read_bytes() == _text(config)
        else:
            same = config["sha256"][file] == checksums.sha256(path, told=told)
    except OSError as error:
        return f"cannot be read ({error.strerror or _fault(error)})"
    return "" if same else "is not what was exported"


def _text(content: dict) -> bytes:
    return json_text(content).encode()


def _backbone(folder: epath.Path) -> Part:
    path, faults, note, count = folder / backbone_folder.SETTINGS, [], "", 1
    try:
        settings = read_object(path, {"format": int})
        if "settings_sha256" not in settings:
            note = f"{path.name} has no hash of its own, as it was written by 0.1.0"
        elif settings["settings_sha256"] != backbone_folder.settings_sha256(settings) or path.read_bytes() != _text(
            settings
        ):
            faults.append((path.name, "is not what was written"))
        files = backbone_folder.load(str(folder), verify=True)
        count += len(files.tensors.paths) + bool(files.records)
        faults += [(file.name, fault) for file in files.tensors.paths if (fault := _header_fault(file))]
    except (UserError, OSError) as error:
        faults.append((path.name, _fault(error)))
    return Part(f"backbone {folder.name}", count, faults, note)


def _manifest(path: epath.Path) -> Part:
    utterances, report = manifest.check(path)
    faults = [
        (row["name"], f"{kind}: {row['detail']}")
        for kind, rows in report.to_json()["utterances"].items()
        for row in rows
    ]
    note = "no checksums: every recording was decoded, which finds most damage in FLAC, little in WAV"
    return Part(f"manifest {path.name}", len(utterances), faults, note)


def print_parts(parts: Sequence[Part]) -> None:
    """Prints the table, and names what is damaged."""
    rows = [
        (part.name, f"{part.files:,}", f"{len(part.faults):,}" if part.faults else "none", part.note) for part in parts
    ]
    console = stdout()
    console.print(table(("part", "files checked", "damaged", "not checked"), rows, left=("not checked",)))
    for part in parts:
        shown = part.faults[:_MOST_SHOWN]
        if shown:
            faults = [
                *shown,
                *([("...", f"{len(part.faults) - len(shown):,} more")] if len(part.faults) > len(shown) else []),
            ]
            console.print(table(("file", "what is wrong"), faults, title=part.name, left=("what is wrong",)))


def define_flags() -> None:
    """The flags of this command."""
    flags.DEFINE_string("json", None, "A file to write everything to.")


def main(argv: Sequence[str]) -> int:
    """Checks the path that the command line names."""
    if len(argv) != 2:
        raise UserError(f"verify takes one path; got {len(argv) - 1}: a run, an adapter, a backbone, or a data set")
    cli.check_output("json", flags.FLAGS.json)
    with tqdm(desc="checking", unit="B", unit_scale=True) as bar:
        parts = verify(argv[1], told=bar.update)
    print_parts(parts)
    if flags.FLAGS.json:
        write_file(flags.FLAGS.json, json_text([part._asdict() for part in parts]))
    damaged = sum(len(part.faults) for part in parts)
    if damaged:
        raise UserError(f"{argv[1]}: {damaged} of its files are damaged or cannot be used")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags=define_flags, takes_words=True)
