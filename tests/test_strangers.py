"""What strangers send: every folder and file works, or is refused in one line that names it.

The long form: HRA_FUZZ_INPUTS=500 HRA_FUZZ_SEEDS=1,2,3 pytest --slow tests/test_strangers.py -s
tries 500 adapters, 300 backbones, 300 published folders, 500 files of JSON and 500 folders to verify for each seed.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from reference import micro as world
from reference import published, strangers, tiny

import hra_jax
from hra_jax.adapters import adapter_folder, initial, methods
from hra_jax.errors import UserError
from hra_jax.models import backbone_folder
from hra_jax.storage.json_files import json_text
from hra_jax.tasks import commands
from hra_jax.text.vocabularies import CharacterVocabulary

SHARES = {"adapters": 1.0, "backbones": 0.6, "published": 0.6, "json": 1.0, "verify": 1.0}
METHODS = ("hra", "hra per layer", "residual", "lora", "lora and output", "bitfit", "output")
FAMILIES = ("w2v-bert shaw", "conformer rope", "parakeet", "lasr")


def write_adapter(folder: Path, files: backbone_folder.BackboneFiles, name: str) -> None:
    settings = methods.settings(tiny.METHODS[name])
    settings["layers"] = [0] if settings["layers"] else []
    adapter = methods.from_settings(settings)
    weights = tiny.random_trainable(adapter, files.encoder, tasks=3)
    shared, own = (sum(leaf.size for leaf in jax.tree.leaves(weights[part])) for part in ("shared", "tasks"))
    adapter_folder.write_adapter(
        folder,
        method=settings,
        weights=weights,
        tasks=[{"name": task, "row": row, "step": 9, "wer": 0.5} for row, task in enumerate(world.SPEAKERS)],
        backbone={"name": "micro", "fingerprint": files.fingerprint},
        vocabulary=files.vocabulary,
        accounting={
            "trainable_parameters": shared + own,
            "shared_parameters": shared,
            "parameters_per_task": own // 3,
            "backbone_parameters": files.parameters,
        },
    )


def write_own_vocabularies(folder: Path, files: backbone_folder.BackboneFiles) -> None:
    """An adapter whose tasks write in vocabularies of their own."""
    adapter = methods.from_settings({"name": "output", "output": "characters", "output_size": 5})
    adapter_folder.write_adapter(
        folder,
        method=methods.settings(adapter),
        weights=tiny.random_trainable(adapter, files.encoder, tasks=3),
        tasks=[
            {"name": task, "row": row, "vocabulary": CharacterVocabulary("abz "[: row + 2]).to_json()}
            for row, task in enumerate(world.SPEAKERS)
        ],
        backbone={"name": "micro", "fingerprint": files.fingerprint},
        vocabulary=files.vocabulary,
        accounting={"trainable_parameters": 9, "shared_parameters": 0, "parameters_per_task": 3}
        | {"backbone_parameters": files.parameters},
    )


def write_json_files(folder: Path, bases: Path, run: Path) -> None:
    """A folder for each reader of JSON."""
    for name in strangers.READERS:
        (folder / name).mkdir(parents=True)
    shutil.copytree(bases / "adapters" / "own", folder / "adapter", dirs_exist_ok=True)
    shutil.copytree(bases / "backbones" / "shards", folder / "backbone", dirs_exist_ok=True)
    shutil.copytree(bases / "backbones" / "shards", folder / "shards", dirs_exist_ok=True)
    (folder / "shards" / "backbone.json").unlink()
    (folder / "results" / "same").mkdir()
    for place in (folder / "results", folder / "results" / "same"):
        for file in (run / "eval" / "test").glob("*.json*"):
            shutil.copy(file, place)
    shutil.copy(run / "config.json", folder / "config")
    shutil.copy(run / "metrics.jsonl", folder / "metrics")
    speakers = [{"name": "ann", "voice": "en-us"}, {"name": "bob", "voice": "en-gb", "band": [300, 3000]}]
    (folder / "speakers" / "speakers.json").write_text(json.dumps(speakers))
    rows = {"too_long": [{"name": "a:1", "detail": "9 s"}], "bad_json": [{"name": "a:2", "detail": "no"}]}
    (folder / "report" / "data_report.json").write_text(json_text({"counts": {}, "utterances": rows}))
    summary = {"speakers": {"ann": {"utterances": 1, "seconds": 2.0, "words": 3}}, "hash": "f", "espeak": "1"}
    (folder / "rendering" / "synthesis.json").write_text(json_text(summary | {"request": {}}))
    for name, family in (("symbols", "w2v-bert shaw"), ("tokenizer", "parakeet")):
        config = json.loads((bases / "published" / family / "config.json").read_text())
        for file in ("vocab.json", "tokenizer_config.json", "tokenizer.json"):
            if (bases / "published" / family / file).exists():
                shutil.copy(bases / "published" / family / file, folder / name)
        (folder / name / "blank").write_text(str(config["pad_token_id"]))


@pytest.fixture(scope="module")
def bases(micro, trained, tmp_path_factory) -> Path:
    """The folders that are damaged, by kind; each is read as it is."""
    folder = tmp_path_factory.mktemp("bases")
    files = backbone_folder.load(micro.backbone)
    for name in METHODS:
        write_adapter(folder / "adapters" / name, files, name)
    write_own_vocabularies(folder / "adapters" / "own", files)
    shutil.copytree(micro.backbone, folder / "backbones" / "micro")
    backbone_folder.save(
        folder / "backbones" / "shards",
        files.params,
        features=files.features,
        encoder=files.encoder,
        vocabulary=files.vocabulary,
        dtype="bfloat16",
        info=files.info,
        max_bytes=4000,
    )
    for family in FAMILIES:
        published.write(folder / "published" / family, family)
    write_json_files(folder / "json", folder, trained.workdir)
    shutil.copytree(trained.workdir, folder / "runs" / "micro")
    for reader, read in strangers.READERS.items():
        read(folder / "json" / reader)
    return folder


def contradicting(bases: Path, folder: Path, name: str, **changes) -> Path:
    """An adapter whose settings are changed and whose tensors are not."""
    shutil.copytree(bases / "adapters" / name, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["method"] |= changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def adapter_readers(micro) -> dict:
    """What reads an adapter folder, by name; each takes the folder."""
    backbone = hra_jax.load_backbone(micro.backbone)
    files = backbone.files
    return {
        "load_adapter": lambda folder: hra_jax.load_adapter(folder, backbone),
        "adapter.start": lambda folder: initial.read_start(
            str(folder), fingerprint=files.fingerprint, encoder=files.encoder
        ),
        "tasks list": lambda folder: commands.list_tasks(str(folder)),
        "tasks show": lambda folder: commands.show(str(folder), "ann"),
        "tasks rename": lambda folder: commands.rename(str(folder), "ann", "eve"),
    }


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("lora", {"rank": 10**9}, "lora.rank = 1000000000: allowed: an integer of at least 1 and at most 65536"),
        ("lora", {"rank": 2}, "'per_layer.attention_query.a' has the shape"),
        ("lora", {"projections": []}, "lora.projections = (): allowed"),
        ("lora", {"projections": ["attention.query", "ff1.up", "nothing"]}, "'nothing' is no projection"),
        ("lora", {"alpha": 0}, "lora.alpha = 0: allowed"),
        ("residual", {"width": -1}, "residual.width = -1: allowed"),
        ("residual", {"width": 6}, "has the shape"),
        ("own", {"output_size": 10**9}, "output.output_size = 1000000000: allowed"),
        ("own", {"output_size": 6}, "has the shape"),
        ("hra", {"reads": "attention.nothing"}, "hra.reads = 'attention.nothing'"),
        ("hra", {"head": "linear"}, "is no tensor of the hra settings there"),
    ],
)
def test_every_reader_of_an_adapter_compares_its_settings_with_its_tensors(
    micro, bases, tmp_path, name, changes, words
):
    folder = contradicting(bases, tmp_path / "stranger", name, **changes)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for read in adapter_readers(micro).values():
        with pytest.raises(UserError) as error:
            read(folder)
        assert words in str(error.value) and "stranger" in str(error.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_adapter_of_another_geometry_under_the_fingerprint_of_the_backbone_is_refused(micro, bases, tmp_path):
    files = backbone_folder.load(micro.backbone)
    other = dataclasses.replace(files, encoder=dataclasses.replace(files.encoder, d_ff=40))
    write_adapter(tmp_path / "stranger", other, "lora")
    readers = adapter_readers(micro)
    for name in ("load_adapter", "adapter.start"):
        with pytest.raises(UserError, match=r"stranger.*'per_layer.ff1_up.b' has the shape \[2, 3, 40\]"):
            readers[name](tmp_path / "stranger")


def test_vocabularies_larger_than_their_layer_are_refused(micro, bases, tmp_path):
    folder = shutil.copytree(bases / "adapters" / "own", tmp_path / "stranger")
    content = json.loads((folder / "tasks.json").read_text())
    content["tasks"][1]["vocabulary"]["characters"] = list("abcdefgh")
    (folder / "tasks.json").write_text(json.dumps(content))
    strangers.unsign(folder / "adapter_config.json")
    with pytest.raises(UserError, match="stranger: task 'bob': its vocabulary has 9 symbols; allowed: 5, the outputs"):
        hra_jax.load_adapter(folder, hra_jax.load_backbone(micro.backbone))


@pytest.mark.parametrize(
    ("kind", "count"), [("adapters", 30), ("backbones", 15), ("published", 6), ("json", 60), ("verify", 60)]
)
def test_what_is_damaged_works_or_is_refused_in_one_line(bases, kind, count):
    attempts = strangers.Attempts(kind, bases, runs=False)
    for number in range(count):
        attempts.once(number, os.environ.get("HRA_SEED", "0"))
    print(f"{kind}: {attempts.read} read, {attempts.refused} refused, slowest {attempts.slowest:.1f} s")
    assert attempts.refused > count / 3


@pytest.mark.slow(minutes=0.8)
@pytest.mark.parametrize("seed", os.environ.get("HRA_FUZZ_SEEDS", "1").split(","))
@pytest.mark.parametrize("kind", SHARES)
def test_many_that_are_damaged_end_no_process_and_take_no_time_or_memory(bases, command_env, kind, seed):
    count = round(SHARES[kind] * int(os.environ.get("HRA_FUZZ_INPUTS", "60")))
    command = [sys.executable, "-m", "reference.strangers", kind, str(count), seed, str(bases)]
    environment = command_env | {"PYTHONPATH": f"{command_env['PYTHONPATH']}{os.pathsep}{Path(__file__).parent}"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120 + 20 * count
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout.strip())
