"""Checksums of stored files: of JSON values, and of all files of a folder.

    FOLDER/files.json   {"files": {"a/b": [bytes, XXH3]}, "crc32": of the rest}

XXH3 has 64 bits and costs less than reading a file does. Neither it nor a CRC-32 is a protection against people:
exported adapters and backbones have SHA-256 for what comes from elsewhere.
"""

import concurrent.futures
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO

import xxhash
from etils import epath

from hra_jax.errors import DamagedError, UserError
from hra_jax.storage.files import check_regular, write_file
from hra_jax.storage.json_files import check_fields, read_json
from hra_jax.storage.remote import StorageUnavailable

LISTING = "files.json"
_PIECE = 1 << 18  # bytes that are read at a time: they stay in the cache
_THREADS = 4  # xxhash and hashlib let others run meanwhile


def of_json(value: object) -> int:
    """The CRC-32 of a JSON value, however it is written."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def sha256_of_json(value: object) -> str:
    """The SHA-256 of a JSON value, however it is written, in hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(file: epath.PathLike, *, told: Callable[[int], object] = lambda count: None) -> str:
    """The SHA-256 of a file's content, in hexadecimal digits.

    Args:
      file: the file.
      told: called with the number of bytes of each piece that has been read.

    Raises:
      OSError: it cannot be read, or is no regular file.
    """
    digest = hashlib.sha256()
    check_regular(file)
    with epath.Path(file).open("rb") as stream:
        for piece in pieces(stream):
            digest.update(piece)
            told(len(piece))
    return digest.hexdigest()


def pieces(stream: IO[bytes]) -> Iterable[bytes]:
    """The rest of a file, some of it at a time."""
    while piece := stream.read(_PIECE):
        yield piece


def of_file(file: epath.PathLike, *, told: Callable[[int], object] = lambda count: None) -> tuple[int, int]:
    """Bytes and XXH3 of a file's content; arguments and errors as `sha256`."""
    count, digest = 0, xxhash.xxh3_64()
    check_regular(file)
    with epath.Path(file).open("rb") as stream:
        for piece in pieces(stream):
            count += len(piece)
            digest.update(piece)
            told(len(piece))
    return count, digest.intdigest()


def of_bytes(content: bytes) -> tuple[int, int]:
    """Bytes and XXH3 of the content of a file, as `of_file` gives them."""
    return len(content), xxhash.xxh3_64_intdigest(content)


def files_of(folder: epath.PathLike, *, but: Callable[[str], bool] = lambda path: False) -> list[str]:
    """The regular files of a local folder and of the folders in it, as sorted paths `a/b`.

    Args:
      folder: the folder.
      but: which paths are left out; the listing and hidden files always are.
    """
    folder = os.fspath(folder)
    found = []
    for parent, _, names in os.walk(folder):
        found += [os.path.relpath(os.path.join(parent, name), folder).replace(os.sep, "/") for name in names]
    return sorted(
        path
        for path in found
        if path != LISTING
        and not any(part.startswith(".") for part in path.split("/"))
        and not but(path)
        and os.path.isfile(os.path.join(folder, path))  # a pipe, or a link to a device, has no end
    )


def endless_files(folder: epath.PathLike) -> list[str]:
    """What is in a local folder, and in the folders in it, that is neither a file nor a folder: pipes, devices."""
    walk = [os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return sorted(os.path.relpath(path, folder) for path in walk if os.path.exists(path) and not os.path.isfile(path))


def write_listing(
    folder: epath.PathLike, *, but: Callable[[str], bool] = lambda path: False, durable: bool = False
) -> None:
    """Writes `files.json` of a complete local folder; `but` as for `files_of`, `durable` as for `write_file`.

    Raises:
      OSError: a file cannot be read, or the listing not be written.
    """
    folder, names = epath.Path(folder), files_of(folder, but=but)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(names, map(list, pool.map(lambda name: of_file(folder / name), names)), strict=True))
    write_file(folder / LISTING, listing_text(found), durable=durable)


def listing_text(files: Mapping[str, Sequence[int]]) -> str:
    """The content of a `files.json`: of each file, by its path, bytes and XXH3."""
    return json.dumps({"files": files, "crc32": of_json(files)}) + "\n"


def check_listing(
    folder: epath.PathLike, *, told: Callable[[int], object] = lambda count: None
) -> dict[str, str] | None:
    """Compares a folder with its `files.json`; files that were added later are no fault.

    Args:
      folder: a folder, local or in a bucket.
      told: called with the bytes of each piece that has been read.

    Returns:
      What is wrong with each file of the listing, '' where nothing is, and with the listing itself; None without one.
    """
    folder = epath.Path(folder)
    if not (folder / LISTING).exists():
        return None
    try:
        recorded = listed(folder)
    except UserError as error:
        return {LISTING: str(error).removeprefix(f"{folder / LISTING}: ")}
    return {name: _fault(folder / name, *recorded[name], told=told) for name in sorted(recorded)} | {LISTING: ""}


def _fault(file: epath.Path, count: int, digest: int, *, told: Callable[[int], object]) -> str:
    try:
        check_regular(file)
        size = file.stat().length
        # Not read at all where that is enough: a file of holes may be of any size.
        found = of_file(file, told=told) if size == count else (size, digest)
    except FileNotFoundError:
        return "is missing"
    except StorageUnavailable:
        raise  # which says nothing of the file
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if found[0] != count:
        return f"has {found[0]:,} bytes in place of {count:,}"
    return "" if found[1] == digest else "is not what was written"


def listed(folder: epath.PathLike) -> dict[str, list[int]]:
    """What the `files.json` of a folder says: of each file, by its path, bytes and XXH3.

    Raises:
      UserError: there is none, it is not what was written, or it cannot be read.
    """
    folder = epath.Path(folder)
    where = f"{folder / LISTING}"
    content = check_fields(read_json(folder / LISTING), {"files": dict, "crc32": int}, where=where)
    # By its text too: an edited blank is not seen in the value.
    text = json.dumps(content) + "\n"
    if content["crc32"] != of_json(content["files"]) or (folder / LISTING).read_bytes() != text.encode():
        raise DamagedError(f"{where}: is not what was written")
    for name, entry in content["files"].items():
        if not _is_below(name):
            raise UserError(f"{where}: files: {name!r:.80} is no file of the folder; allowed: paths like a/b")
        if not isinstance(entry, list) or len(entry) != 2 or any(type(n) is not int or n < 0 for n in entry):
            raise UserError(f"{where}: files: {name!r:.80}: {entry!r:.80}; allowed: [bytes, XXH3]")
    return dict(content["files"])


def _is_below(name: str) -> bool:
    """Whether a path leads to a file of the folder that it starts from; links aside."""
    return "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
