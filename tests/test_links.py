"""A stranger's folder may hold links: no command writes through one, whatever name it has."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from reference import micro as world
from reference import published

from hra_jax import evaluate, train
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import load_config
from hra_jax.convert.conversion import convert
from hra_jax.data import manifest
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run import own_exports, workdirs
from hra_jax.run.scoring import data_report
from hra_jax.storage.files import write_file
from hra_jax.tasks import commands
from hra_jax.training.metrics import MetricWriter

FIXTURES = Path(__file__).resolve().parent / "fixtures"
KEPT = "what only the user may change\n"


def entries(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: the content of files, None of folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def victims(folder: Path) -> dict[str, Path]:
    """What links may point at: a file, a folder with a file of every name that matters, and nothing."""
    (folder / "victim").mkdir(parents=True)
    (folder / "file").write_text(KEPT, encoding="utf-8")
    for name in ("README.md", "results.json", "config.json", "metrics.jsonl"):
        (folder / "victim" / name).write_text(KEPT, encoding="utf-8")
    return {kind: folder / kind for kind in ("file", "victim", "nowhere")}


def links(
    tmp_path: Path, prepare: Callable, act: Callable, *, more: tuple[str, ...] = (), given: tuple[str, ...] = ()
) -> Iterator[tuple]:
    """Runs a command once for every name that it writes and every target of a link in that place.

    Args:
      tmp_path: where to.
      prepare: makes what the command needs in a folder.
      act: the command, on that folder.
      more: names of files that the command writes and removes again.
      given: folders that the user names on the command line, which may be links of the user's own.

    Yields:
      (name, target) for each, after the command has left everything that links point at as it was.
    """
    whole = tmp_path / "whole"
    prepare(whole)
    before = entries(whole)
    act(whole)
    after = entries(whole)
    written = {name for name in after if name not in before or before[name] != after[name]}
    names = sorted((written | set(more) | {str(up) for name in written for up in Path(name).parents[:-1]}) - set(given))
    assert names
    for number, name in enumerate(names):
        for kind in ("file", "victim", "nowhere"):
            place = tmp_path / f"{number}-{kind}"
            targets = victims(place / "outside")
            outside = entries(place / "outside")
            prepare(place / "inside")
            there = place / "inside" / name
            if there.is_dir() and not there.is_symlink():
                shutil.rmtree(there)
            there.parent.mkdir(parents=True, exist_ok=True)
            there.unlink(missing_ok=True)
            there.symlink_to(targets[kind])
            with contextlib.suppress(UserError, OSError):
                act(place / "inside")
            assert entries(place / "outside") == outside, f"{name} -> {kind}"
            yield name, kind


def adapters(folder: Path) -> None:
    for name in ("A", "B"):
        shutil.copytree(FIXTURES / "adapters" / "hra", folder / name)


def first_task(folder: Path) -> str:
    return next(iter(read_adapter(folder).tasks))


IN_PLACE = {
    "add": lambda folder: commands.add(str(folder / "A"), "new", init="mean"),
    "remove": lambda folder: commands.remove(str(folder / "A"), first_task(folder / "A")),
    "rename": lambda folder: commands.rename(str(folder / "A"), first_task(folder / "A"), "new"),
    "import": lambda folder: commands.import_tasks(
        str(folder / "A"), str(folder / "B"), first_task(folder / "B"), new_name="new"
    ),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_no_command_that_changes_an_adapter_writes_through_a_link(tmp_path, capsys, name):
    tried = {found for found, _ in links(tmp_path, adapters, IN_PLACE[name], more=(".A.lock",))}
    assert {"A/tasks.json", "A/README.md", "A/adapter_config.json", ".A.lock"} <= tried


@pytest.mark.parametrize("name", ["rename", "remove"])
@pytest.mark.parametrize("link", [".README.md.tmp", "tasks", "tasks/ann.safetensors", "deep/inside/x", ".hidden"])
def test_a_link_anywhere_in_an_adapter_that_is_rewritten_is_refused_in_one_line(tmp_path, link, name):
    adapters(tmp_path)
    (tmp_path / "A" / link).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "secret").write_text(KEPT, encoding="utf-8")
    (tmp_path / "A" / link).symlink_to(tmp_path / "secret")
    before = entries(tmp_path)
    with pytest.raises(UserError, match="is a link, and nothing is written through links") as caught:
        IN_PLACE[name](tmp_path)
    assert "\n" not in str(caught.value) and entries(tmp_path) == before


def test_looking_at_an_adapter_and_taking_tasks_out_write_through_no_link(tmp_path, capsys):
    def act(folder: Path) -> None:
        adapter, task = str(folder / "A"), first_task(folder / "A")
        commands.list_tasks(adapter, json=str(folder / "list.json"))
        commands.show(adapter, task, json=str(folder / "show.json"))
        commands.export_tasks(adapter, task, output=str(folder / "out" / "C"))

    tried = {found for found, _ in links(tmp_path, adapters, act, more=("out/.C.lock",), given=("out", "out/C"))}
    assert {"list.json", "show.json", "out/C/tasks.json"} <= tried


def test_manifests_are_written_through_no_link(tmp_path):
    def prepare(folder: Path) -> None:
        for number in range(4):
            place = folder / "recordings" / f"speaker{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(FIXTURES / "speech.flac", place / f"{number}.flac")
            (place / f"{number}.txt").write_text("one two", encoding="utf-8")

    def act(folder: Path) -> None:
        manifest.make(folder / "recordings", folder / "out" / "all.jsonl")

    assert {"out/all.jsonl"} == {found for found, _ in links(tmp_path, prepare, act, given=("out",))}


def test_a_work_directory_s_own_files_are_written_through_no_link(tmp_path):
    """The parts of a run that write, one after the other, each as if the one before had let it come so far."""
    config = load_config("fsdd")

    def claim(folder: Path) -> None:
        with workdirs.claim(config, folder / "W"):
            pass

    def report(folder: Path) -> None:
        with contextlib.suppress(UserError), data_report(folder / "W", strict=False, keep=True):
            raise UserError("for the report to be written")

    def metrics(folder: Path) -> None:
        with MetricWriter(folder / "W", resume_step=0) as writer:
            writer.write(10, {"loss": 1.0})

    def export(folder: Path) -> None:
        def write(fresh: Path) -> None:
            for name in ("adapter_config.json", "tasks.json", "README.md"):
                write_file(fresh / name, "{}")

        own_exports.replace_adapter(folder / "W", write, tasks=["ann"])

    acts = {
        claim: ("W/.lock",),
        report: (),
        metrics: ("W/metrics.jsonl",),
        export: ("W/.adapter.lock", "W/adapter", "W/exported.json"),
        lambda folder: DataReport().write(folder / "W" / "data_report.json"): ("W/config.json",),
    }
    for number, (act, more) in enumerate(acts.items()):
        folder = tmp_path / f"{number}"
        prepare = (lambda place: (place / "W").mkdir(parents=True)) if act in (claim, metrics) else _claimed(config)
        assert len(list(links(folder, prepare, act, more=(*more, "W/.lock"), given=("W",)))) > 3


def _claimed(config) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        with workdirs.claim(config, folder / "W"):
            pass

    return prepare


# --- Whole commands ---------------------------------------------------------------------------------------------------


@pytest.mark.slow(minutes=0.5)
def test_a_conversion_writes_through_no_link(tmp_path):
    def act(folder: Path) -> None:
        convert(folder / "published", folder / "out" / "backbone")

    def prepare(folder: Path) -> None:
        published.write(folder / "published", "w2v-bert shaw")

    given = ("out", "out/backbone")
    tried = {found for found, _ in links(tmp_path, prepare, act, more=("out/.backbone.lock",), given=given)}
    assert {"out/backbone/backbone.json", "out/backbone/model.safetensors"} <= tried


@pytest.mark.slow(minutes=1)
def test_training_and_evaluation_write_through_no_link(micro, tmp_path, monkeypatch):
    world.use_devices(monkeypatch, 1)
    config = micro.config(steps=2, eval__suite=micro.suite("test"))
    train.train(config, tmp_path / "done" / "W")

    def prepare(folder: Path) -> None:
        shutil.copytree(tmp_path / "done", folder)

    def again(folder: Path) -> None:
        assert train.train(config, folder / "W") == 0

    def score(folder: Path) -> None:
        evaluate.evaluate(folder / "W", micro.suite("mixed"))

    begun = list(links(tmp_path / "begun", lambda folder: folder.mkdir(parents=True), again, given=("W",)))
    names = {name for name, _ in begun}
    assert {"W/config.json", "W/metrics.jsonl", "W/checkpoints", "W/adapter/README.md", "W/eval/test/wer.png"} <= names
    scored = list(links(tmp_path / "scored", prepare, score, more=("W/eval/.mixed.lock",), given=("W",)))
    assert {"W/eval/mixed/results.json"} <= {name for name, _ in scored}
    print(f"{len(begun) + len(scored)} links tried")
