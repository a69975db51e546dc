"""The life of a task from the command line: every command on small adapters, and everything that is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from reference import micro as world

import hra_jax
from hra_jax import train
from hra_jax.adapters import adapter_folder, methods
from hra_jax.adapters.bitfit import BiasAdapter
from hra_jax.adapters.hra import HierarchicalRecurrentAdapter
from hra_jax.adapters.lora import LowRankAdapter
from hra_jax.adapters.output import OutputAdapter
from hra_jax.adapters.residual import ResidualAdapter
from hra_jax.config.files import validate_config
from hra_jax.config.keys import group
from hra_jax.data.batching import bucket_rows
from hra_jax.data.manifest import load_manifest
from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.evaluation import leaks
from hra_jax.storage import locks, safetensors
from hra_jax.storage.trees import flatten
from hra_jax.tasks import adding, commands
from hra_jax.tasks.backbone import resolve_backbone

METHODS = {
    "lora": LowRankAdapter(projections=("attention.query", "ff1.up", "convolution.gated"), rank=3, layers=(1,)),
    "lora and output": LowRankAdapter(rank=2, output="task"),
    "bitfit": BiasAdapter(),
    "bitfit and output": BiasAdapter(layers=(0,), output="task"),
    "output": OutputAdapter(),
    "hra": HierarchicalRecurrentAdapter(width=5, recurrence="gru", head="ffn", head_width=3),
    "residual": ResidualAdapter(width=3),
}
WAVEFORMS = [world.tones(text, seed=seed) for seed, text in enumerate(("abc", "fade", "b"))]
STEPS = 3


@pytest.fixture(scope="module")
def backbone(micro):
    return hra_jax.load_backbone(micro.backbone)


@pytest.fixture
def adapter(trained, tmp_path) -> str:
    """A copy of the adapter of a finished run, to be changed."""
    return str(shutil.copytree(trained.workdir / "adapter", tmp_path / "adapter"))


@pytest.fixture(scope="module")
def other_methods(micro, tmp_path_factory) -> dict[str, Path]:
    """Adapter folders of random parameters by the name of their method."""
    folder = tmp_path_factory.mktemp("methods")
    return {name: world.write_adapter(folder / name, adapter, micro) for name, adapter in METHODS.items()}


@pytest.fixture
def call(monkeypatch):
    """Runs a command line in this process; the exit status."""

    def run(*line) -> int | None:
        values = flags.FlagValues()
        commands.define_flags(values)
        monkeypatch.setattr(commands, "FLAGS", values)
        return commands.main(values(["tasks", *map(str, line)]))

    return run


def contents(folder) -> dict[str, bytes]:
    folder = Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tensors(folder) -> dict[str, bytes]:
    """{name of a tensor: its bytes} of an adapter folder."""
    raw = safetensors.from_bytes((Path(folder) / adapter_folder.WEIGHTS_FILE).read_bytes(), where=str(folder))
    return {name: leaf.tobytes() for name, leaf in raw.items()}


def log_probs(folder, backbone, names) -> np.ndarray:
    model = hra_jax.load_adapter(folder, backbone, slots=4)
    return model.log_probs(WAVEFORMS, sample_rate=world.RATE, tasks=list(names))[0]


def names_of(folder) -> list[str]:
    entries = adapter_folder.read_adapter(folder).tasks_json
    assert [entry["row"] for entry in entries] == list(range(len(entries)))
    return [entry["name"] for entry in entries]


def write_tasks(adapter, entries):
    """Edits tasks.json by hand, and drops the hashes as the error asks for."""
    (Path(adapter) / "tasks.json").write_text(json.dumps(entries))
    config = json.loads((Path(adapter) / "adapter_config.json").read_text())
    (Path(adapter) / "adapter_config.json").write_text(json.dumps(config | {"sha256": {}}))


# --- Looking ----------------------------------------------------------------------------------------------------------


def test_list_prints_and_writes_every_task(call, adapter, trained, tmp_path, capsys):
    entries = json.loads((Path(adapter) / "tasks.json").read_text())
    entries["tasks"][1]["wer"] = 0.125
    write_tasks(adapter, entries)
    before = contents(adapter)
    assert call("list", adapter, "--json", tmp_path / "list.json") is None
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "list.json").read_text())
    assert f"backbone micro, fingerprint {found['backbone']['fingerprint'][:12]}" in printed
    assert "method hra (" in printed and "width 6" in printed and "parameters: 108 shared" in printed
    assert "+ 3 tasks x 112 = 444" in printed
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    results = json.loads((trained.workdir / "eval" / "test" / "results.json").read_text())
    wers = {name: f"{task['wer']:.1%}" for name, task in results["tasks"].items()}
    assert [row[:5] for row in rows] == [
        ["ann", "0", "4", wers["ann"], "112"],
        ["bob", "1", "4", "12.5%", "112"],
        ["cy", "2", "4", wers["cy"], "112"],
    ]
    exported = adapter_folder.read_adapter(trained.workdir / "adapter")
    for row, entry in zip(rows, found["tasks"], strict=True):
        leaves = [leaf.ravel() for leaf in flatten(exported.tasks[row[0]]).values()]
        np.testing.assert_allclose(entry["norm"], np.linalg.norm(np.concatenate(leaves)), rtol=1e-5)
        np.testing.assert_allclose(float(row[5]), entry["norm"], rtol=1e-3)
    assert contents(adapter) == before


def test_show_tells_everything_of_one_task(call, adapter, tmp_path, capsys):
    entries = json.loads((Path(adapter) / "tasks.json").read_text())
    entries["tasks"][1]["consent"] = {"given": True}
    write_tasks(adapter, entries)
    assert call("show", adapter, "bob", "--json", tmp_path / "show.json") is None
    printed = capsys.readouterr().out
    assert "task 'bob': row 1, trained at step 4, WER 100.0%, 112 parameters of norm" in printed
    assert 'consent: { "given": true }' in printed
    assert "all_layers.head.kernel" in printed and "6 x 16" in printed
    found = json.loads((tmp_path / "show.json").read_text())
    assert found["consent"] == {"given": True} and found["tensors"]["all_layers.head.bias"]["shape"] == [16]


# --- Add --------------------------------------------------------------------------------------------------------------


def test_a_new_task_of_zero_effect_leaves_every_other_byte(call, adapter, backbone, micro, capsys):
    before, old = tensors(adapter), log_probs(adapter, backbone, ("ann", "bob", "cy"))
    assert call("add", adapter, "dee", "--init", "zero", "--backbone", micro.backbone) == 0
    printed = capsys.readouterr().out
    assert f"added 'dee' in row 3, started as zero; {adapter} has 4 tasks, 108 + 4 x 112 parameters" in printed
    after = tensors(adapter)
    assert {name: after[name] for name in before} == before
    assert {name.split(".")[1] for name in after.keys() - before.keys()} == {"dee"}
    np.testing.assert_array_equal(log_probs(adapter, backbone, ("ann", "bob", "cy")), old)
    base = log_probs(adapter, backbone, ["__base__"] * 3)
    np.testing.assert_array_equal(log_probs(adapter, backbone, ["dee"] * 3), base)
    assert adapter_folder.read_adapter(adapter).tasks_json[3] == {"name": "dee", "row": 3, "step": 0, "init": "zero"}
    card = (Path(adapter) / "README.md").read_text()
    assert "108 shared + 4 tasks x 112 = 556" in card and "ann, bob, cy, dee" in card


@pytest.mark.parametrize("init", ["mean", "cy"])
def test_a_new_task_may_start_as_the_mean_or_as_another(call, adapter, backbone, tmp_path, init):
    before = contents(adapter)
    assert call("add", adapter, "dee", "--init", init, "--output", tmp_path / "out") == 0
    assert contents(adapter) == before
    found = adapter_folder.read_adapter(tmp_path / "out")
    given = adapter_folder.read_adapter(adapter).tasks
    expected = given["cy"] if init == "cy" else jax.tree.map(lambda *rows: np.mean(rows, axis=0), *given.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found.tasks["dee"], expected)
    if init == "cy":
        np.testing.assert_array_equal(*(log_probs(tmp_path / "out", backbone, [n] * 3) for n in ("cy", "dee")))


@pytest.fixture(scope="module")
def manifest(micro, tmp_path_factory) -> Path:
    """Recordings of two speakers, some without any tag, and a line that is broken."""
    path = tmp_path_factory.mktemp("dee") / "dee.jsonl"
    rows = world.read_manifest(micro.data / "train.jsonl")[2:8]
    for row in rows:
        row["audio_filepath"] = os.path.relpath(micro.data / row["audio_filepath"], path.parent)
    del rows[0]["speaker"]
    rows[1]["task"] = "somebody else"
    world.write_manifest(path, [*rows, "{broken"])
    return path


@pytest.fixture
def one_device(monkeypatch):
    world.use_devices(monkeypatch, 1)
    monkeypatch.setattr(adding.jax, "device_count", lambda: 1)


@pytest.mark.parametrize("init", ["zero", "bob"])
def test_training_a_new_task_trains_its_head_alone(
    call, adapter, backbone, micro, manifest, tmp_path, capsys, one_device, init
):
    before, old = tensors(adapter), log_probs(adapter, backbone, ("ann", "bob", "cy"))
    entries, records = (getattr(adapter_folder.read_adapter(adapter), part) for part in ("tasks_json", "records"))
    line = ("add", adapter, "dee", "--init", init, "--manifest", manifest, "--backbone", micro.backbone)
    line += ("--steps", STEPS, "--learning_rate", "0.01")
    assert call(*line, "--workdir", tmp_path / "W") == 0
    printed = capsys.readouterr().out
    assert f"added 'dee' in row 3, started as {init}, trained for {STEPS} steps" in printed
    assert "left out 1 bad_json" in printed and "shared 108 kept as they are" in printed
    after = tensors(adapter)
    assert {name: after[name] for name in before} == before
    np.testing.assert_array_equal(log_probs(adapter, backbone, ("ann", "bob", "cy")), old)
    new, start = (log_probs(adapter, backbone, [n] * 3) for n in ("dee", "__base__" if init == "zero" else init))
    assert np.abs(new - start).max() > 1e-4
    exported = adapter_folder.read_adapter(adapter)
    assert exported.tasks_json == [*entries, {"name": "dee", "row": 3, "step": STEPS, "init": init}]
    assert exported.config["accounting"]["trainable_parameters"] == 108 + 4 * 112
    # It was trained on some of the recordings, itself alone, and on what the task was trained on that it started as.
    own, shared = exported.records["own_hashes"], exported.records["hashes"]
    utterances = load_manifest(str(manifest), report=DataReport())
    assert own.keys() == {"dee"} and set(own["dee"].tolist()) <= set(leaks.hashes_of(utterances).tolist())
    started = {"dee": records["hashes"]["bob"]} if init == "bob" else {}
    for task, hashes in (records["hashes"] | started).items():
        np.testing.assert_array_equal(shared[task], hashes)
    # What the run itself exported is the same adapter.
    assert tensors(tmp_path / "W" / "adapter") == after
    config = json.loads((tmp_path / "W" / "config.json").read_text())
    assert (config["steps"], config["optimizer"]["learning_rate"]) == (STEPS, 0.01)
    assert config["adapter"]["train"] == "tasks" and config["eval"]["suite"] == ""
    rows = world.read_manifest(tmp_path / "W" / "manifest.jsonl")
    assert len(rows) == 6 and {row["task"] for row in rows} == {"dee"}
    assert all(Path(row["audio_filepath"]).exists() for row in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["W", "adapter"]


def test_a_stopped_training_changes_nothing_and_goes_on(
    call, adapter, micro, manifest, tmp_path, monkeypatch, capsys, one_device
):
    before = contents(adapter)
    line = ("add", adapter, "dee", "--init", "zero", "--manifest", manifest, "--backbone", micro.backbone)
    line += ("--steps", STEPS, "--workdir", tmp_path / "W")
    update = train.Progress.update

    def stop(progress, step, **figures):
        update(progress, step, **figures)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train.Progress, "update", stop)
        assert call(*line) == 75
    assert "the same command continues" in capsys.readouterr().out
    assert contents(adapter) == before
    assert call(*line) == 0
    assert "resuming at step 1" in capsys.readouterr().out
    assert names_of(adapter) == ["ann", "bob", "cy", "dee"]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_the_configuration_that_trains_its_task(other_methods, name):
    config = adding.task_config(adapter_folder.read_adapter(other_methods[name]), steps=None, learning_rate=None)
    config.backbone = "somewhere"
    validate_config(config)
    assert (
        methods.from_config(group(config, "adapter"), methods.own_settings(config, config.adapter.name))
        == METHODS[name]
    )
    assert config.steps == adding.STEPS == 300 and config.adapter.train == "tasks"
    # Every bucket has rows for all devices.
    batch, devices = config.batch, jax.device_count()
    assert batch.multiple == devices
    assert min(bucket_rows(batch.buckets, batch_seconds=batch.seconds, multiple=batch.multiple)) >= devices


# --- Remove, rename, export, import -----------------------------------------------------------------------------------


def test_a_task_that_is_removed_and_imported_again_recognises_bit_for_bit_the_same(
    call, adapter, trained, backbone, tmp_path, capsys
):
    old = log_probs(adapter, backbone, ("ann", "bob", "cy"))
    assert call("export", adapter, "bob", "--output", tmp_path / "bob") is None
    assert call("remove", adapter, "bob") is None
    assert names_of(adapter) == ["ann", "cy"] and names_of(tmp_path / "bob") == ["bob"]
    assert not any("bob" in name for name in tensors(adapter))
    assert b"bob" not in b"".join(contents(adapter).values())
    with pytest.raises(UserError, match="unknown task 'bob'"):
        log_probs(adapter, backbone, ["bob"] * 3)
    assert call("import", adapter, tmp_path / "bob", "--task", "bob") is None
    assert names_of(adapter) == ["ann", "cy", "bob"]
    np.testing.assert_array_equal(log_probs(adapter, backbone, ("ann", "bob", "cy")), old)
    assert tensors(adapter) == tensors(trained.workdir / "adapter")
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(";")[0] for line in printed] == [
        "exported 'bob'",
        "removed 'bob'",
        f"imported 'bob' from {tmp_path / 'bob'}",
    ]
    counted = json.loads((Path(adapter) / "adapter_config.json").read_text())["accounting"]
    assert counted["trainable_parameters"] == 108 + 3 * 112


def test_an_exported_task_is_an_adapter_by_itself(call, adapter, backbone, tmp_path):
    before = contents(adapter)
    assert call("export", adapter, "cy", "ann", "--output", tmp_path / "two") is None
    assert contents(adapter) == before and names_of(tmp_path / "two") == ["ann", "cy"]
    np.testing.assert_array_equal(
        *(log_probs(folder, backbone, ("cy", "ann", "cy")) for folder in (adapter, tmp_path / "two"))
    )


def test_a_renamed_task_recognises_as_before(call, adapter, backbone, capsys):
    old = log_probs(adapter, backbone, ("ann", "bob", "cy"))
    assert call("rename", adapter, "bob", "Robert / 2") is None
    assert "renamed 'bob' to 'Robert / 2'" in capsys.readouterr().out
    assert names_of(adapter) == ["ann", "Robert / 2", "cy"]
    np.testing.assert_array_equal(log_probs(adapter, backbone, ("ann", "Robert / 2", "cy")), old)


def test_import_takes_all_tasks_some_or_one_under_another_name(call, adapter, trained, tmp_path):
    source, out = trained.workdir / "adapter", tmp_path / "out"
    call("remove", adapter, "ann", "cy")
    call("import", adapter, source, "--task", "cy", "--as", "cyrus")
    assert names_of(adapter) == ["bob", "cyrus"]
    call("import", adapter, source, "--task", "cy", "--task", "ann", "--output", out)
    assert names_of(adapter) == ["bob", "cyrus"] and names_of(out) == ["bob", "cyrus", "ann", "cy"]
    call("remove", adapter, "bob", "cyrus")
    assert names_of(adapter) == []
    call("import", adapter, source)
    assert names_of(adapter) == ["ann", "bob", "cy"]
    assert tensors(adapter) == tensors(source)


# --- Specialize -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "lora and output", "bitfit", "bitfit and output", "output"])
@pytest.mark.optimised
def test_a_merged_task_is_a_backbone_that_recognises_as_the_adapter_did(
    call, other_methods, backbone, micro, tmp_path, capsys, name
):
    line = ("specialize", other_methods[name], "bob", "--backbone", micro.backbone)
    assert call(*line, "--output", tmp_path / "bob") is None
    printed = capsys.readouterr().out
    merged = hra_jax.load_backbone(str(tmp_path / "bob"), verify=True)
    assert merged.fingerprint != backbone.fingerprint and merged.fingerprint[:12] in printed
    expected = log_probs(other_methods[name], backbone, ["bob"] * 3)
    found = merged.log_probs(WAVEFORMS, sample_rate=world.RATE)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - log_probs(other_methods[name], backbone, ["__base__"] * 3)).max() > 1e-2
    info = merged.files.info
    assert info["name"] == "micro-bob" and info["license"] == "Apache-2.0"
    assert info["source"]["merged"]["task"] == {"name": "bob", "step": 9}
    assert info["source"]["backbone"]["fingerprint"] == backbone.fingerprint
    assert info["source"]["merged"]["method"] == methods.settings(METHODS[name])


@pytest.mark.parametrize("name", ["hra", "residual"])
def test_a_task_that_cannot_be_merged_is_an_adapter_by_itself_and_the_reason_is_told(
    call, other_methods, backbone, tmp_path, capsys, name
):
    assert call("specialize", other_methods[name], "bob", "--output", tmp_path / "bob") is None
    assert f"exported 'bob' alone; {name} cannot be merged: its correction depends on activations" in (
        capsys.readouterr().out
    )
    assert names_of(tmp_path / "bob") == ["bob"]
    expected = log_probs(other_methods[name], backbone, ["bob"] * 3)
    np.testing.assert_array_equal(log_probs(tmp_path / "bob", backbone, ["bob"] * 3), expected)


# --- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ((), "unknown command ''; allowed: list, show, add"),
        (("lst", "A"), "unknown command 'lst'; did you mean 'list'"),
        (("list",), "0 arguments; allowed: list ADAPTER"),
        (("list", "A", "ann"), "2 arguments; allowed: list ADAPTER"),
        (("rename", "A", "ann"), "2 arguments; allowed: rename ADAPTER OLD NEW"),
        (("list", "A", "--output", "x"), "--output is no flag of list; allowed: --json"),
        (("remove", "A", "ann", "--steps", "3"), "--steps is no flag of remove; allowed: --output"),
        (("list", "nothing"), "adapter_config.json is not a file"),
        (("list", "A", "--json", "."), "--json='.' is a folder; allowed: the path of a file"),
        (("show", "A", "bop"), "unknown task 'bop'; did you mean 'bob'?"),
        (("add", "A", "dee"), "add needs --init; allowed: zero, mean, or the name of a task"),
        (("add", "A", "ann", "--init", "mean"), "task 'ann' is there already"),
        (("add", "A", "__base__", "--init", "mean"), "cannot have the name '__base__'"),
        (
            ("add", "A", "dee", "--init", "bop"),
            "cannot start as 'bop': neither zero, mean nor a task; did you mean 'bob'",
        ),
        (("add", "A", "dee", "--init", "zero"), "the backbone 'micro' of the adapter is neither built in nor a folder"),
        (("add", "A", "dee", "--init", "zero", "--backbone", "OTHER"), "the adapter: trained on the backbone 'micro'"),
        (
            ("add", "A", "dee", "--init", "zero", "--backbone", "no"),
            "backbone = 'no': must be builtin:NAME or a folder",
        ),
        (("add", "A", "dee", "--init", "mean", "--backbone", "B"), "--backbone='B' has no use with --init mean"),
        (("add", "A", "dee", "--init", "mean", "--steps", "9"), "--steps=9 has no use without --manifest"),
        (("add", "A", "dee", "--init", "mean", "--workdir", "w"), "--workdir=w has no use without --manifest"),
        (
            ("add", "A", "dee", "--init", "mean", "--manifest", "no.jsonl", "--backbone", "B"),
            "no manifest at no.jsonl",
        ),
        (
            ("add", "A", "dee", "--init", "mean", "--manifest", "M", "--backbone", "B", "--learning_rate", "0"),
            "config.optimizer.learning_rate is 0.0; allowed: a number above 0",
        ),
        (
            ("add", "A", "dee", "--init", "mean", "--manifest", "M", "--backbone", "OTHER"),
            "but this run's has the fingerprint",
        ),
        (("remove", "A", "ann", "bop"), "unknown task 'bop'; did you mean 'bob'?"),
        (("remove", "A", "ann", "ann"), "task 'ann' is given twice"),
        (("rename", "A", "ann", "bob"), "task 'bob' is there already"),
        (("rename", "A", "ann", "__mean__"), "cannot have the name '__mean__'"),
        (("export", "A", "ann"), "export needs --output"),
        (("export", "A", "ann", "--output", "A"), "is there already; allowed: a folder that is not, or an empty one"),
        (("remove", "A", "ann", "--output", "FULL"), "is there already; allowed"),
        (("import", "A", "A"), "task 'ann' is there already"),
        (("import", "A", "A", "--task", "an"), "unknown task 'an'; did you mean 'ann'?"),
        (("import", "A", "A", "--as", "x"), "3 tasks cannot all have the name 'x'"),
        (("import", "A", "LORA"), 'the method\'s name is "hra" in the adapter, but "lora" where the tasks come from'),
        (("specialize", "A", "ann"), "specialize needs --output"),
        (("specialize", "A", "bop", "--output", "new"), "unknown task 'bop'"),
        (("specialize", "LORA", "ann", "--output", "new"), "give --backbone DIR"),
        (
            ("specialize", "LORA", "ann", "--output", "new", "--backbone", "OTHER"),
            "the adapter: trained on the backbone",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_one_line_and_changes_nothing(
    call, adapter, micro, manifest, other_methods, tmp_path, monkeypatch, one_device, line, told
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    if "OTHER" in line:
        world.make_backbone(tmp_path / "other", seed=1)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    places = {"A": adapter, "B": micro.backbone, "M": manifest, "LORA": other_methods["lora"]}
    places |= {"OTHER": tmp_path / "other", "FULL": tmp_path / "full"}
    line = [places.get(word, word) for word in line]
    before = contents(adapter)
    with pytest.raises(UserError) as caught:
        call(*line)
    assert told in str(caught.value).replace(micro.backbone, "B") and "\n" not in str(caught.value)
    assert contents(adapter) == before and list(here.iterdir()) == []


def test_a_built_in_backbone_is_found_by_its_name(micro, trained):
    exported = adapter_folder.read_adapter(trained.workdir / "adapter")
    exported.config["backbone"] = {"name": "tiny", "fingerprint": "x"}
    assert resolve_backbone(exported, None) == "builtin:tiny"
    assert resolve_backbone(exported, "elsewhere") == "elsewhere"


def test_the_command_in_a_process_of_its_own(adapter, command_env):
    def run(*line: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "hra_jax.tasks", *line]
        return subprocess.run(command, env=command_env, capture_output=True, text=True, check=False)

    done = run("add", adapter, "dee", "--init=mean")
    assert (done.returncode, done.stderr) == (0, "")
    assert names_of(adapter) == ["ann", "bob", "cy", "dee"]
    done = run("remove", adapter, "dea")
    assert done.returncode == 2 and done.stderr == "error: unknown task 'dea'; did you mean 'dee'?\n"


def test_what_another_process_is_writing_of_an_adapter_stays_there_when_a_copy_is_changed(call, adapter, tmp_path):
    half = tmp_path / f".adapter.new-{'0' * 16}"
    half.mkdir()
    (half / "tasks.json").write_text("half", encoding="utf-8")
    parent = {"process": os.getppid(), "started": locks._started(os.getppid())}
    lock = tmp_path / ".adapter.lock"
    lock.write_bytes(locks._content(locks._this_process("tasks add") | parent, 0))
    lines = (
        ("remove", adapter, "ann"),
        ("rename", adapter, "ann", "dee"),
        ("add", adapter, "dee", "--init", "mean"),
        ("export", adapter, "ann"),
        ("import", adapter, adapter, "--task", "ann", "--as", "dee"),
    )
    for number, line in enumerate(lines):
        call(*line, "--output", tmp_path / f"{number}")
        assert contents(half) == {"tasks.json": b"half"}
        adapter_folder.read_adapter(tmp_path / f"{number}")
    lock.unlink()
    call("remove", adapter, "ann", "--output", tmp_path / "last")
    assert not half.exists()


def test_a_mistyped_adapter_makes_no_folders(call, tmp_path):
    for line in (("remove", "X", "ann"), ("rename", "X", "a", "b"), ("add", "X", "a", "--init", "mean")):
        line = tuple(str(tmp_path / "no" / "such") if word == "X" else word for word in line)
        with pytest.raises(UserError, match="such' is not there; needed is a folder"):
            call(*line)
        with pytest.raises(UserError, match="such' is not there; needed is a folder"):
            call(*line, "--output", tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())
