"""Paths that have a scheme: file:// is a path of this machine wherever one is taken, and of others only buckets are."""

import os
import shutil
from pathlib import Path

import pytest
from etils import epath

from hra_jax import verify
from hra_jax.adapters.adapter_folder import read_adapter
from hra_jax.config.files import find_config, load_config
from hra_jax.data import manifest
from hra_jax.data.report import DataReport
from hra_jax.data.synthetic.rendering import render
from hra_jax.errors import UserError
from hra_jax.evaluation.suites import load_suite
from hra_jax.models import backbone_folder
from hra_jax.run import workdirs
from hra_jax.run.foreseen import missing_files
from hra_jax.storage import files, folders, locks
from hra_jax.storage.remote import is_remote
from hra_jax.tasks import commands

FIXTURES = Path(__file__).resolve().parent / "fixtures"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a blank and a percent sign in its name, in which nothing may be made by the name of an address."""
    folder = tmp_path / "my 100% data"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    yield folder
    assert os.listdir(tmp_path) == [folder.name]


def claimed(folder: str) -> Path:
    with workdirs.claim(load_config("fsdd"), folder) as found:
        workdirs.list_files(found.path)
        return Path(found.path)


def test_an_address_of_a_file_is_its_path_wherever_a_path_is_taken(here):
    for name in ("data", "backbone", "adapters"):
        shutil.copytree(FIXTURES / name, here / name)
    shutil.copyfile(FIXTURES / "test.py", here / "test.py")
    at = here.as_uri()
    assert at.endswith("my%20100%25%20data") and not is_remote(at)

    rows = manifest.load_manifest(f"{at}/data/test.jsonl", report=DataReport(strict=True))
    assert rows and all(os.path.exists(row.audio_filepath) for row in rows)
    assert load_suite(f"{at}/test.py", data_dir=f"{at}/data", report=DataReport(strict=True)).utterances
    assert find_config(f"{at}/test.py", kind="suites") == epath.Path(here / "test.py")
    assert backbone_folder.resolve(f"{at}/backbone") == epath.Path(here / "backbone")

    tasks = list(read_adapter(f"{at}/adapters/hra").tasks)
    commands.rename(f"{at}/adapters/hra", tasks[0], "another")
    commands.export_tasks(f"{at}/adapters/hra", "another", output=f"{at}/one")
    assert list(read_adapter(here / "one").tasks) == ["another"]
    assert not any(part.faults for part in verify.verify(f"{at}/one"))

    assert claimed(f"{at}/W") == here / "W" and (here / "W" / "config.json").exists()
    with locks.hold(f"{at}/W", "a test"):
        assert (here / "W" / ".lock").exists()
    (here / "data" / "transcripts.csv").write_text("file,text\naudio/test-0.flac,eins\n")
    assert manifest.make(f"{at}/data", f"{at}/made.jsonl").lines == 1
    assert manifest.check(f"{at}/made.jsonl")[0][0].text == "eins"
    folders.replace_folder(f"{at}/new", lambda fresh: files.write_file(fresh / "a.txt", "a"))
    files.rename_folder(f"{at}/new", f"{at}/renamed")
    assert (here / "renamed" / "a.txt").read_text() == "a"
    files.remove_folder(f"{at}/renamed")
    assert not (here / "renamed").exists()
    assert missing_files([f"{at}/gone.wav", f"{at}/test.py"]) == [f"{at}/gone.wav"]


@pytest.mark.parametrize("scheme", ["http", "https", "az", "hf", "GS", "file"])
def test_another_scheme_is_refused_by_name_wherever_a_path_is_taken(here, scheme):
    address = f"{scheme}://elsewhere/m"
    report = DataReport()
    for take in (
        lambda: manifest.load_manifest(address, report=report),
        lambda: manifest.make(address, here / "m.jsonl"),
        lambda: manifest.make(FIXTURES / "data", address),
        lambda: load_suite(f"{address}.py", data_dir="", report=report),
        lambda: load_suite(str(FIXTURES / "test.py"), data_dir=address, report=report),
        lambda: load_config(f"{address}.py"),
        lambda: backbone_folder.resolve(address),
        lambda: read_adapter(address),
        lambda: commands.list_tasks(address),
        lambda: commands.rename(address, "a", "b"),
        lambda: commands.export_tasks(str(FIXTURES / "adapters" / "hra"), "a", output=address),
        lambda: claimed(address),
        lambda: verify.verify(address),
    ):
        with pytest.raises(UserError, match=f"'{address}[^']*': .* is not read here; allowed: ") as caught:
            take()
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="is not a local folder"):
        render("tiny-test", address)


def test_a_colon_and_slashes_in_the_middle_of_a_path_are_no_scheme(here):
    path = f"{here}/a://b"
    assert not is_remote(path) and epath.Path(path) == epath.Path(here / "a:" / "b")
