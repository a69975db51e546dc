"""Work directories: which run owns it, who may write to it, and what must not be there already.

A folder becomes the work directory of a run when the run writes its configuration there, `config.json`, before anything
else. Training holds the lock of the folder from then to its end. Evaluation only reads, and may go on meanwhile.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from etils import epath, epy
from ml_collections import ConfigDict

from hra_jax.config.files import config_from_json, config_to_json, stored_difference, validate_config
from hra_jax.data.batching import set_buckets
from hra_jax.errors import UserError
from hra_jax.storage import checksums, locks
from hra_jax.storage.files import check_no_link, check_no_links, is_remote, remove_file, write_file
from hra_jax.storage.json_files import read_json, read_text
from hra_jax.storage.remote import StorageUnavailable
from hra_jax.training import agreement

# Imported at the first use, as it draws.
with epy.lazy_imports():
    from hra_jax.evaluation import report

CONFIG = "config.json"
DATA_REPORT = "data_report.json"
METRICS = "metrics.jsonl"
EVENTS = "metrics"
PROFILE = "profile"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "eval"
ADAPTER = "adapter"
BACKBONE = "backbone"
LANGUAGE = "lm"  # language models of the training texts, and their weights
EXPORTED = "exported.json"
FILES = checksums.LISTING  # of what a finished run has written
MANIFEST = "manifest.jsonl"  # of `tasks add`
# Whatever a command writes in a work directory.
WRITTEN = (
    CONFIG,
    DATA_REPORT,
    METRICS,
    EVENTS,
    PROFILE,
    CHECKPOINTS,
    EVALUATIONS,
    ADAPTER,
    BACKBONE,
    LANGUAGE,
    EXPORTED,
    FILES,
    MANIFEST,
)
# Every configuration of a run has had these, whatever the version.
_KEYS = ("method", "seed", "steps", "data", "batch", "optimizer", "eval", "export", "checkpoint")
SHARED = "allowed: storage that all processes share"
_ALLOWED = "allowed: a new folder, an empty one, or the work directory of a run"


class Claimed(NamedTuple):
    """A work directory that this run may write.

    Attributes:
      path: the folder.
      resumed: whether it holds checkpoints, which are of the same configuration.
      steps: how many steps the run was to have when it was last started; those of the configuration where it begins.
    """

    path: epath.Path
    resumed: bool
    steps: int


@contextlib.contextmanager
def claim(config: ConfigDict, workdir: epath.PathLike) -> Iterator[Claimed]:
    """Makes a folder the work directory of a run, for as long as the block lasts; a collective.

    Writes W/config.json, which nothing does before it is known that the folder is new or a run's.

    Args:
      config: the configuration of the run; one that is continued may set keys as it was begun with.
      workdir: the folder.

    Raises:
      UserError: in every process: a folder that is not a run's, or of a run with another configuration; one that
        another process writes; links in it; one that cannot be written, or that not all processes see.
    """
    path = named(workdir)
    with contextlib.ExitStack() as stack:
        resumed: list[tuple[bool, int]] = []

        def take() -> None:
            with _storage_errors(path):
                # Before the lock is written there, and after: who had it may have changed what is there.
                check_ours(path)
                stack.enter_context(locks.hold(path, "training"))
                check_ours(path)
                check_links(path)
                resumed.append(_checked_resume(config, path))
                write_file(path / CONFIG, config_to_json(config))

        agreement.first_alone(take)
        if not (path / CONFIG).exists():
            raise UserError(
                f"workdir = {str(path)!r}: process {jax.process_index()} does not see what process 0 wrote there; "
                f"{SHARED}"
            )
        continued, steps = agreement.gather(resumed)[0][0]
        if continued:
            as_begun(config, path)  # in every process
        yield Claimed(path, continued, steps)


def check_claim(config: ConfigDict, workdir: epath.PathLike) -> bool:
    """What `claim` would refuse is refused, and nothing is written.

    Args:
      config: the configuration of the run; it stays as it is.
      workdir: the folder, which may be absent.

    Returns:
      Whether the run would go on from a checkpoint.

    Raises:
      UserError: as `claim`. A lock that another machine holds is watched for as long as its owner needs to renew it.
      StorageUnavailable: the folder is in a bucket that does not answer.
    """
    path = named(workdir)
    with _storage_errors(path):
        check_ours(path)
        locks.check_free(path)
        check_links(path)
        return _checked_resume(config.copy_and_resolve_references(), path)[0]


def list_files(workdir: epath.PathLike) -> None:
    """Writes the checksums of what a finished run has written; what has its own is left out. Raises OSError."""
    if not is_remote(workdir):
        with _listing(workdir):
            checksums.write_listing(workdir, but=lambda path: not _is_listed(path), durable=True)


def forget_files(workdir: epath.PathLike) -> bool:
    """Removes those checksums, as files are about to change; whether there were any."""
    path = epath.Path(workdir) / FILES
    if is_remote(workdir) or not path.exists():
        return False
    with _listing(workdir):
        remove_file(path)
    return True


@contextlib.contextmanager
def changing_files(workdir: epath.PathLike) -> Iterator[None]:
    """Has a finished run's checksums follow what the block writes, also where it fails; without any it stays so."""
    if jax.process_index() or is_remote(workdir):
        yield
        return
    known, done = forget_files(workdir), False
    try:
        yield
        done = True
    finally:
        # What is already on its way up counts for more than a listing that cannot be written.
        with contextlib.suppress(*(() if done else (OSError, UserError))):
            _follow(workdir, known=known)


def _follow(workdir: epath.PathLike, *, known: bool) -> None:
    """Lists the files again: of a run that has ended meanwhile too, and of none that has begun."""
    with _listing(workdir):
        if (epath.Path(workdir) / FILES).exists() or (known and not locks.is_held(workdir)):
            list_files(workdir)


def _listing(workdir: epath.PathLike) -> contextlib.AbstractContextManager[locks.Lock]:
    # Who reads the files for a listing must not miss what another one writes before it is there.
    return locks.hold_beside(epath.Path(workdir) / FILES, "list files", patient=True)


def _is_listed(path: str) -> bool:
    """Whether a file of a work directory, `a/b`, is a run's own, and has its checksum nowhere else."""
    name, _, rest = path.partition("/")
    if name == EVALUATIONS:
        return rest.count("/") == 1 and report.is_report_file(rest.partition("/")[2])
    return name in WRITTEN and name not in (CHECKPOINTS, ADAPTER, BACKBONE)


def named(workdir: epath.PathLike) -> epath.Path:
    """The path of a work directory, which must have a name. Raises UserError."""
    if not os.fspath(workdir):
        raise UserError("workdir = ''; allowed: the path of a folder ('.' is the current one)")
    return epath.Path(workdir)


def stored_config(workdir: epath.PathLike, *, notify: bool = True) -> ConfigDict:
    """The configuration of a run for who takes a checkpoint of it: its suites, and what it exports, need not be there.

    Args:
      workdir: the work directory of a run.
      notify: as for `config_from_json`.

    Returns:
      The configuration, locked, with no suite and with `export.step` "last".

    Raises:
      UserError: no run there, or no configuration of one.
    """
    path = named(workdir) / CONFIG
    if not path.exists():
        raise UserError(f"workdir = {str(workdir)!r}: holds no {CONFIG}, so no run was started there")
    text = read_text(path)
    try:
        config = config_from_json(text, notify=notify)
        with config.unlocked():
            config.eval.suite = config.eval.select_suite = ""
            config.export.step = "last"
        validate_config(config, stored=True)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is no configuration of a run: it lacks the keys of eval or export") from error
    return config


def check_ours(workdir: epath.PathLike) -> None:
    """Refuses a folder in which a run would write over what no run has written.

    Args:
      workdir: the folder, which may be absent.

    Raises:
      UserError: config.json is no run's; or there is none, and something else has a name that a run writes.
    """
    path = epath.Path(workdir)
    if not path.is_dir():
        return
    if (path / CONFIG).exists():
        if not _is_run_config(path / CONFIG):
            raise UserError(f"workdir = {str(path)!r} holds a {CONFIG} that is no configuration of a run; {_ALLOWED}")
        return
    if checkpoint_steps(path):
        return  # the configuration is gone, but these are a run's
    for name in WRITTEN:
        there = path / name
        if name == MANIFEST:
            continue  # it comes before the run, and who writes it has looked
        if there.exists() and not (there.is_dir() and not any(there.iterdir())):
            raise UserError(f"workdir = {str(path)!r} holds {name!r} and no {CONFIG} of a run; {_ALLOWED}")


def check_links(workdir: epath.PathLike, names: Sequence[str] = WRITTEN) -> None:
    """Refuses links in the place of what a command writes in a work directory, and inside of it.

    Args:
      workdir: the folder; it may itself be a link.
      names: of files and folders in it, "/" between folder and file.

    Raises:
      UserError: one of them is a link, or holds one, or lies in one.
    """
    if is_remote(workdir):
        return
    for name in names:
        for parent in reversed(epath.Path(name).parents[:-1]):
            check_no_link(epath.Path(workdir) / parent)
        check_no_links(epath.Path(workdir) / name)


def _is_run_config(path: epath.Path) -> bool:
    try:
        value = read_json(path)
    except UserError:
        return False
    return isinstance(value, dict) and all(key in value for key in _KEYS)


def checkpoint_steps(path: epath.Path) -> list[int]:
    """The steps of the checkpoints in a work directory, in no order."""
    folder = path / CHECKPOINTS
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name]


def _checked_resume(config: ConfigDict, path: epath.Path) -> tuple[bool, int]:
    """Whether there are checkpoints, which must be of this configuration and its steps; and the steps that it had."""
    # Without a checkpoint there is nothing to continue: a first start that failed may be mended.
    steps, stored = checkpoint_steps(path), path / CONFIG
    if steps and stored.exists():
        as_begun(config, path)
        changed = stored_difference(read_text(stored), config, trains=max(steps) < config.steps)
        if changed:
            raise UserError(f"{path} belongs to a run with another configuration: {'; '.join(changed)}")
    # Before the configuration is stored: what is refused changes nothing.
    if steps and config.steps < max(steps):
        raise UserError(
            f"steps = {config.steps}: the run is already at step {max(steps)}; allowed is {max(steps)} or more"
        )
    if steps and stored.exists():
        return True, config_from_json(read_text(stored), notify=False).steps
    return bool(steps), config.steps


def as_begun(config: ConfigDict, path: epath.Path) -> None:
    """Has a run go on with what it was begun with, where its configuration says so in other words.

    That is a run whose texts kept their format characters, as its vocabularies may hold some; and one that found its
    length buckets in its data: they stand in its config.json, and it was asked for as many.
    """
    if not (path / CONFIG).exists():
        return
    stored = config_from_json(read_text(path / CONFIG), notify=False)
    if stored.data.format_characters == "kept":
        with config.unlocked():
            config.data.format_characters = "kept"
    found, asked = stored.batch.buckets, config.batch.buckets
    if isinstance(asked, int) and isinstance(found, tuple) and len(found) <= asked:
        set_buckets(config, found)


def write_config(config: ConfigDict, path: epath.Path) -> None:
    """Writes the configuration of a run that has claimed the folder, as it is now; a collective."""
    with _storage_errors(path):
        agreement.first_alone(lambda: write_file(path / CONFIG, config_to_json(config)))


@contextlib.contextmanager
def _storage_errors(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except StorageUnavailable:
        raise
    except OSError as error:
        raise UserError(f"workdir = {str(path)!r}: cannot be written ({error.strerror or error})") from error
