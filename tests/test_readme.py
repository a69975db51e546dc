"""Every command of the README runs as it stands there, in its order, on less data and for fewer steps."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from reference import published

from hra_jax.data import synthesize

README = Path(__file__).resolve().parent.parent / "README.md"
SHORT = ["--config.steps=2", "--config.optimizer.warmup_steps=1", "--config.eval.bootstrap=10"]

QUICKSTART = "python -m hra_jax.train --config quickstart --workdir runs/quickstart"  # what `make quickstart` runs
# Enough steps for every speaker to be in one: an adapter that has learnt nothing is an error.
QUICK = ["--config.steps=10", "--config.optimizer.warmup_steps=1", "--config.data.synthetic="]

# One short bucket.
AHEAD = ["--config.batch.multiple=4", "--config.batch.buckets=(1.0,)", "--config.batch.seconds=8"]
AHEAD += ["--config.eval.batch_seconds=8"]

# A command of the README, and what is added to it here. Other names in capitals are paths in `place`.
COMMANDS = {
    "python -m hra_jax.data.manifest make FOLDER --split --output FOLDER": [],
    "python -m hra_jax.train --config own --config.data.dir=FOLDER --workdir runs/own": SHORT,
    "python -m hra_jax.transcribe --adapter runs/own/adapter --task SPEAKER a.wav b.flac": [],
    "python -m hra_jax.train --config fsdd --config.data.dir=FSDD --workdir runs/fsdd": SHORT,
    "python -m hra_jax.train --config pretrain_tiny --workdir runs/pretrain_tiny": [
        *SHORT,
        "--config.data.synthetic=",
        "--config.batch.seconds=8",
    ],
    "python launch/local.py --processes 2 --devices 2 -- -m hra_jax.train --config quickstart "
    "--config.batch.multiple=4 --workdir runs/two": QUICK,
    "python launch/gke/jobset.py --name hra --topology v5e:4x4 --spot --config fsdd --workdir gs://BUCKET/runs/fsdd "
    "--config.data.dir=gs://BUCKET/fsdd --config.batch.multiple=16 --config.batch.seconds=160 --image IMAGE --apply": [
        "--dry-run"
    ],
    "python launch/sweep.py --workdir runs/sweep --set optimizer.learning_rate=1e-3,4e-3 --set seed=0,1 "
    "--json runs/sweep.json -- --config fsdd --config.data.dir=FSDD": SHORT,
    "python -m hra_jax.train --config NAME --workdir W": [*SHORT, "--config.data.dir=FOLDER"],
    "python -m hra_jax.evaluate --workdir W --suite NAME --step best": [],
    "python -m hra_jax.transcribe --adapter DIR --task NAME a.wav": [],
    "python -m hra_jax.data.manifest make FOLDER --output M.jsonl": [],
    "python -m hra_jax.data.manifest check M.jsonl": [],
    "python -m hra_jax.data.synthesize --set hard --output DIR": ["--scale=0.02"],
    "python -m hra_jax.tasks list DIR": [],
    "python -m hra_jax.compare W1 W2": [],
    "python -m hra_jax.params --config NAME --tasks 1,10,100 --methods all": [],
    "python -m hra_jax.params --config usm_2b_hra --tasks 1,10,100,1000,10000,100000 --methods all "
    "--json benchmarks/params_usm_2b.json --plot benchmarks/params_usm_2b.png": [],
    "python -m hra_jax.aot --config NAME --topology v5e:2x2": [*AHEAD, "--steps=transcription"],
    "python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16 --plan": [],
    "python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16 --json aot.json": [
        *AHEAD,
        "--topology=v5e:2x2",
        "--steps=train",
        "--config.mesh.fsdp=2",
        "--config.pretrain.size=tiny",
    ],
    "python -m hra_jax.convert --source W2V_BERT --output backbones/w2v_bert": [],
    "python -m hra_jax.train --config w2v_bert_hra --config.backbone=backbones/w2v_bert --config.data.dir=FOLDER "
    "--workdir runs/w2v_bert": [*QUICK[:2], "--config.batch.multiple=4", "--config.batch.buckets=(8.0,)"]
    + ["--config.batch.seconds=64", "--config.eval.batch_seconds=64"],
    "python -m hra_jax.transcribe --adapter runs/w2v_bert/adapter --backbone backbones/w2v_bert "
    "--task SPEAKER a.wav": [],
    "python -m hra_jax.convert --source DIR --output NEW": [],
    "python -m hra_jax.tasks list runs/own/adapter": [],
    "python -m hra_jax.tasks add runs/own/adapter newcomer --init mean": [],
    "python -m hra_jax.tasks rename runs/own/adapter newcomer guest": [],
    "python -m hra_jax.tasks export runs/own/adapter guest --output runs/guest": [],
    "python -m hra_jax.tasks remove runs/own/adapter guest": [],
    "python -m hra_jax.tasks import runs/own/adapter runs/guest": [],
    "python -m hra_jax.tasks specialize runs/own/adapter SPEAKER --output runs/alone": [],
}
# Placeholders of the table mean another thing in each row.
PLACES = {
    "python -m hra_jax.convert --source DIR --output NEW": {"DIR": "W2V_BERT", "NEW": "backbones/again"},
    "python -m hra_jax.aot --config NAME --topology v5e:2x2": {"NAME": "own"},
    "python -m hra_jax.train --config NAME --workdir W": {"NAME": "own"},
    "python -m hra_jax.evaluate --workdir W --suite NAME --step best": {"NAME": "speakers"},
    "python -m hra_jax.transcribe --adapter DIR --task NAME a.wav": {"DIR": "W/adapter", "NAME": "whisper"},
    "python -m hra_jax.data.synthesize --set hard --output DIR": {"DIR": "hard"},
    "python -m hra_jax.tasks list DIR": {"DIR": "W/adapter"},
    "python -m hra_jax.compare W1 W2": {"W1": "W/eval/speakers", "W2": "W/eval/speakers"},
    "python -m hra_jax.params --config NAME --tasks 1,10,100 --methods all": {"NAME": "own"},
}


def commands() -> list[str]:
    """What the README tells to type, but for `make`: lines of code blocks, and code in tables."""
    text = README.read_text()
    found = re.findall(r"^(python (?:-m|launch/).*?)\s*$|^\| `(python -m [^`]*)`", text, flags=re.MULTILINE)
    return [block or cell for block, cell in found]


def test_every_command_of_the_readme_is_run_below():
    assert sorted(set(commands())) == sorted(COMMANDS)
    makefile = (README.parent / "Makefile").read_text()
    assert QUICKSTART.split()[1:5] == re.search(r"^quickstart:.*\n\t\S+ (.*) --workdir", makefile, re.M)[1].split()


def test_every_launch_command_of_the_readme_runs_dry(tmp_path, command_env):
    found = re.findall(r"^((?:python )?launch/\S+)(.*)$", README.read_text(), flags=re.MULTILINE)
    names = {name.split("/")[-1] for name, _ in found}
    assert names >= {"create.sh", "resume.sh", "delete.sh", "jobset.py", "sweep.py"}
    for name, rest in found:
        python, script = [sys.executable] if name.startswith("python ") else [], name.split()[-1]
        command = [*python, str(README.parent / script), "--dry-run", *shlex.split(rest)]
        env = command_env | {"PYTHON": sys.executable}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout, f"{name}{rest}\n{done.stderr}"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to type in: rendered speech, and recordings with transcripts, a folder for each speaker."""
    here = tmp_path_factory.mktemp("here")
    (here / "benchmarks").mkdir()
    synthesize.render("hard", here / "runs/data/hard", scale=0.02, progress=False)
    synthesize.render("plain", here / "runs/data/plain", scale=0.004, progress=False)
    speech = synthesize.render("tiny-test", here / "tiny", progress=False)
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (speech / f"{split}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            audio = here / "FOLDER" / row["speaker"] / f"{split}-{number}.flac"
            audio.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(speech / row["audio_filepath"], audio)
            audio.with_suffix(".txt").write_text(row["text"])
    shutil.copytree(speech, here / "FSDD")
    published.write(here / "W2V_BERT", "w2v-bert bare")
    first = sorted((here / "FOLDER" / "plain").glob("*.flac"))
    for name, source in zip(("a.wav", "b.flac"), first, strict=False):
        soundfile.write(here / name, *soundfile.read(source))
    return here


def run(command: str, place: Path, env: dict) -> str:
    words = shlex.split(command)[1:] + COMMANDS.get(command, QUICK)
    # Scripts lie in the checkout, and the commands are typed elsewhere.
    words = [str(README.parent / word) if word.startswith("launch/") else word for word in words]
    for name, value in ({"SPEAKER": "whisper"} | PLACES.get(command, {})).items():
        words = [re.sub(rf"\b{name}\b", value, word) for word in words]
    done = subprocess.run([sys.executable, *words], cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_their_order(place, command_env):
    printed = {}
    for command in commands():
        if command not in printed:
            printed[command] = run(command, place, command_env)
    for name in ("own", "fsdd"):
        assert (place / "runs" / name / "adapter" / "adapter_model.safetensors").exists()
    assert (place / "runs" / "pretrain_tiny" / "backbone").exists()
    transcripts = printed["python -m hra_jax.transcribe --adapter runs/own/adapter --task SPEAKER a.wav b.flac"]
    assert "a.wav" in transcripts and "b.flac" in transcripts


@pytest.mark.slow
def test_the_python_of_the_readme_runs_after_the_quickstart(place, command_env):
    run(QUICKSTART, place, command_env)
    code, _ = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    before = "import soundfile\nwaveforms = [soundfile.read(name)[0] for name in ('a.wav', 'b.flac')]\n"
    after = "\nassert len(texts) == 2 and log_probs.shape[0] == 2 and 'whisper' in model.tasks\n"
    command = [sys.executable, "-c", before + code + after]
    done = subprocess.run(command, cwd=place, env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_the_pytorch_of_the_readme_runs_after_its_commands(place, command_env):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for command in commands():
        output = place / shlex.split(command)[-1]
        if "manifest make FOLDER --split" in command or ("w2v_bert" in command and "transcribe" not in command):
            if output.parent != place:
                shutil.rmtree(output, ignore_errors=True)
            run(command, place, command_env)
    _, code = re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)
    before = "import numpy\nwaveforms = [numpy.random.default_rng(0).normal(size=n) for n in (16000, 12000)]\n"
    after = "\nassert len(texts) == 2 and logits.shape[0] == 2\n"
    command = [sys.executable, "-c", before + code + after]
    done = subprocess.run(command, cwd=place, env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
