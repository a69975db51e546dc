"""A stranger's folder may hold links: no command writes through one, whatever name it has."""

import contextlib
import importlib.util
import json
import re
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from etils import epath
from reference import micro as world
from reference import published
from reference.commands import Commands, modules

from hra_jax import evaluate, train
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import load_config
from hra_jax.convert.conversion import convert
from hra_jax.data import cache, manifest
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.run import own_exports, workdirs
from hra_jax.run.scoring import data_report
from hra_jax.storage.files import write_file
from hra_jax.tasks import adding, commands
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


@pytest.mark.parametrize("name", ["hra", "lora"])
def test_a_specialized_task_is_written_through_no_link(tmp_path, capsys, name):
    def prepare(folder: Path) -> None:
        shutil.copytree(FIXTURES / "adapters" / name, folder / "A")

    def act(folder: Path) -> None:
        adapter, backbone = str(folder / "A"), str(FIXTURES / "backbone")
        commands.specialize(adapter, first_task(folder / "A"), output=str(folder / "out" / "C"), backbone=backbone)

    given = ("out", "out/C")
    tried = {found for found, _ in links(tmp_path, prepare, act, more=("out/.C.lock",), given=given)}
    # What is linear is merged into a backbone, all else is an adapter of one task.
    assert {"out/.C.lock", "out/C/tasks.json" if name == "hra" else "out/C/backbone.json"} <= tried


def test_an_exported_checkpoint_is_written_through_no_link(trained, tmp_path, capsys):
    def prepare(folder: Path) -> None:
        shutil.copytree(trained.workdir, folder / "W", ignore=shutil.ignore_patterns("adapter", "eval", "1", "2"))

    def act(folder: Path) -> None:
        commands.export_checkpoint(workdir=str(folder / "W"), output=str(folder / "out" / "C"))

    given = ("out", "out/C")
    tried = {found for found, _ in links(tmp_path, prepare, act, more=("out/.C.lock",), given=given)}
    assert {"out/.C.lock", "out/C/tasks.json", "out/C/adapter_model.safetensors"} <= tried


def test_the_recordings_of_a_new_task_are_written_through_no_link(tmp_path):
    line = json.dumps({"audio_filepath": "a.wav", "duration": 1.0, "text": "one"})

    def prepare(folder: Path) -> None:
        folder.mkdir()
        (folder / "M.jsonl").write_text(line, encoding="utf-8")

    def act(folder: Path) -> None:
        adding.copy_manifest(str(folder / "M.jsonl"), epath.Path(folder / "W" / "manifest.jsonl"), "new")

    assert {"W/manifest.jsonl"} == {found for found, _ in links(tmp_path, prepare, act, given=("W",))}


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


def test_shards_are_written_through_no_link(micro, tmp_path):
    def act(folder: Path) -> None:
        report = DataReport()
        items = cache.items_of(str(micro.data / "test.jsonl"), data_dir="", modules=(), report=report)
        settings = cache.ShardSettings(sample_rate=8000, shard_seconds=1.0)
        cache.cache(items, folder / "shards", settings=settings, report=report)

    more = ("shards/.parts/00000.parquet", "shards/.parts/job.json")
    tried = {found for found, _ in links(tmp_path, Path.mkdir, act, given=("shards",), more=more)}
    assert {*more, "shards/columns.parquet", "shards/shards-train.array_record-00000"} <= tried


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


def test_a_sweep_writes_through_no_link(tmp_path, monkeypatch, capsys):
    sweep = launcher("sweep.py")

    def act(folder: Path) -> None:
        run = sweep.Combination({"seed": "0"}, folder / "S" / "seed=0", [shutil.which("echo"), "trained"])
        monkeypatch.setattr(sweep, "combinations", lambda arguments: [run])
        words = ["--workdir", f"{folder / 'S'}", "--set", "seed=0", "--json", f"{folder / 'table.json'}"]
        status = sweep.main([*words, "--", "--config", "fsdd"])
        told = capsys.readouterr()
        assert (status, told.err) == (0, "") or (status == 2 and told.err.count("\n") == 1)

    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    try:
        tried = {found for found, _ in links(tmp_path, Path.mkdir, act, more=("S/.lock",), given=("S",))}
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
    assert tried == {"S/.lock", "S/seed=0", "S/seed=0/output.txt", "S/seed=0/sweep.json", "table.json"}


def test_the_description_of_pods_is_written_through_no_link(tmp_path, monkeypatch, capsys):
    jobset = launcher("gke/jobset.py")
    monkeypatch.setattr(jobset, "_check_plan", lambda arguments: [])
    words = ["--name", "run", "--topology", "v5e:4x4", "--config", "fsdd", "--workdir", "gs://bucket/W", "--image", "x"]

    def act(folder: Path) -> None:
        status = jobset.main([*words, "--output", str(folder / "jobset.yaml")])
        assert (status, capsys.readouterr().err.count("\n")) in ((0, 0), (2, 1))

    assert {"jobset.yaml"} == {found for found, _ in links(tmp_path, Path.mkdir, act)}


def launcher(name: str) -> types.ModuleType:
    path = FIXTURES.parent.parent / "launch" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


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


@pytest.mark.slow(minutes=0.3)
def test_a_trained_backbone_is_written_through_no_link(micro, tmp_path, monkeypatch, capsys):
    world.use_devices(monkeypatch, 1)
    config = micro.config(steps=1, method="full", optimizer__learning_rate=1e-4)
    train.train(config, tmp_path / "done" / "W")

    def again(folder: Path) -> None:
        assert train.train(config, folder / "W") == 0

    names = ("W/backbone", "W/backbone/backbone.json", "W/backbone/model.safetensors")
    tried = links(tmp_path / "again", lambda folder: shutil.copytree(tmp_path / "done", folder), again, more=names)
    assert set(names) <= {name for name, _ in tried}


# The command, and the flags that name a file of its output.
OUTPUTS = {
    "hra_jax.aot": (["--config", "fsdd", "--topology", "cpu-8"], {"json"}),
    "hra_jax.compare": (["run/eval/test", "run/eval/test"], {"json"}),
    "hra_jax.data.durations": (["--config", "fsdd"], {"output"}),
    "hra_jax.data.manifest": (["check", "m.jsonl"], {"report"}),
    "hra_jax.data.manifest import": (["import", "recordings", "--output", "imported"], {"report"}),
    "hra_jax.data.manifest make": (["make", "recordings"], {"output"}),
    "hra_jax.lm": (["show", "m.lm"], {"arpa"}),
    "hra_jax.lm make": (["make", "--text", "m.jsonl"], {"output"}),
    "hra_jax.params": (["--config", "fsdd"], {"json", "plot"}),
    "hra_jax.tasks": (["list", "run/adapter"], {"json"}),
    "hra_jax.transcribe": (["a.wav"], {"output"}),
    "hra_jax.verify": (["run/adapter"], {"json"}),
}


@pytest.mark.slow(minutes=0.3)
def test_no_file_that_a_flag_names_is_written_through_a_link(trained, tmp_path, monkeypatch, command_env):
    """It is refused before anything is done, as all is that `check_output` refuses."""
    package = Path(train.__file__).parent
    checked = {path.relative_to(package.parent): path.read_text("utf-8") for path in package.rglob("*.py")}
    found = {(file.stem, flag) for file, text in checked.items() for flag in re.findall(r'check_output\("(\w+)"', text)}
    known = {(name.partition(" ")[0].rpartition(".")[2], flag) for name, (_, all) in OUTPUTS.items() for flag in all}
    assert {("commands" if name == "tasks" else name, flag) for name, flag in known} == found
    assert {name.partition(" ")[0] for name in OUTPUTS} <= {*modules()} | {"hra_jax.tasks"}

    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.workdir, "run")
    Path("recordings").mkdir()
    Path("m.jsonl").write_text("")
    targets = victims(Path("outside"))
    before = entries(tmp_path)
    server = Commands(tmp_path.parent, command_env)
    try:
        for name, (words, flags) in OUTPUTS.items():
            for flag in sorted(flags):
                path = Path(f"out.{'png' if flag == 'plot' else 'json'}")
                path.symlink_to(targets["file"])
                status, _, printed = server.run([name.partition(" ")[0], *words, f"--{flag}", str(path)])
                path.unlink()
                lines = [line for line in printed.splitlines() if line.startswith("error: ")]
                assert status == 2 and len(lines) == 1 and lines[0].startswith(f"error: --{flag}='{path}' is a link")
                assert entries(tmp_path) == before, (name, flag)
    finally:
        server.close()
