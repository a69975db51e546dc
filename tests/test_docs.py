"""The pages: each command runs as it stands there, each path and key exists, each figure has a committed cell."""

import ast
import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from ml_collections import ConfigDict
from reference import corpus_trees, launching, prepared_trees, published

from hra_jax.data import synthesize
from hra_jax.data.corpora import prepared
from hra_jax.data.report import DataReport

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in generate.pages()}
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)

# ======================================================================================================================
# Commands: what is typed, and what is added to it here so that it ends soon
# ======================================================================================================================

SHORT = ["--config.steps=2", "--config.optimizer.warmup_steps=1", "--config.eval.bootstrap=10"]
# Enough steps for every speaker to be in one: an adapter that has learnt nothing is an error. One bucket: each is
# compiled.
QUICK = ["--config.steps=10", "--config.optimizer.warmup_steps=1", "--config.data.synthetic="]
QUICK += ["--config.batch.buckets=(5.0,)", "--config.batch.seconds=40"]
# One short bucket.
AHEAD = ["--config.batch.multiple=4", "--config.batch.buckets=(1.0,)", "--config.batch.seconds=8"]
AHEAD += ["--config.eval.batch_seconds=8"]

QUICKSTART = "python -m hra_jax.train --config quickstart --workdir runs/quickstart"  # what `make quickstart` runs
MANIFESTS = "python -m hra_jax.data.manifest make FOLDER --split --output FOLDER"
W2V_BERT = (
    "python -m hra_jax.convert --source W2V_BERT --output backbones/w2v_bert",
    "python -m hra_jax.train --config w2v_bert_hra --config.backbone=backbones/w2v_bert --config.data.dir=FOLDER "
    "--workdir runs/w2v_bert",
)

SWEEP = (
    "python launch/sweep.py --workdir runs/sweep --set optimizer.learning_rate=1e-3,4e-3 --set seed=0,1 "
    "--json runs/sweep.json -- --config fsdd --config.data.dir=FSDD"
)

# Those that take seconds run in `make test`.
FAST: dict[str, list[str]] = {
    MANIFESTS: [],
    "python -m hra_jax.data.manifest make FOLDER --output M.jsonl": [],
    "python -m hra_jax.data.manifest check M.jsonl": [],
    "python -m hra_jax.data.cache --source M.jsonl --output SHARDS": ["--workers=1"],
    "python -m hra_jax.data.manifest import CORPUS --output CORPUS": [],
    "python -m hra_jax.data.manifest check FOLDER/train.jsonl": [],
    "python -m hra_jax.data.corpora list": [],
    "python -m hra_jax.data.corpora show hra/ljspeech": [],
    "python -m hra_jax.data.synthesize --set hard --output DIR": ["--scale=0.02"],
    "python -m hra_jax.params --config NAME --tasks 1,10,100 --methods all": [],
    "python -m hra_jax.params --config usm_2b_hra --tasks 1,10,100,1000,10000,100000 --methods all "
    "--json benchmarks/results/params_usm_2b.json --plot benchmarks/results/params_usm_2b.png": [],
    "python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16 --plan": [],
    "python -m hra_jax.config": [],
    "python docs/generate.py": ["--check"],
}
SLOW: dict[str, list[str]] = {
    "python -m hra_jax.data.corpora prepare hra/ljspeech --data_dir DATA": [],  # it is, from a tree of its layout
    "python -m hra_jax.data.cache --source seqio:hra/ljspeech/train --data_dir DATA": ["--workers=1"],
    "python -m hra_jax.data.corpora prepare hra/user_libri --source DOWNLOADED --data_dir DATA": [],
    "python -m hra_jax.data.cache --source seqio:hra/user_libri/train,validation,test --data_dir DATA": ["--workers=1"],
    "python -m hra_jax.train --config user_libri_hra --config.backbone=BACKBONE --config.data.dir=DATA "
    "--workdir runs/user_libri": [*QUICK, "--config.batch.multiple=1", "--config.eval.every_steps=10"],
    QUICKSTART: QUICK,
    "python -m hra_jax.train --config own --config.data.dir=FOLDER --workdir runs/own": SHORT,
    "python -m hra_jax.train --config own --config.data.dir=FOLDER --config.data.groups=speaker "
    "--config.data.temperature=5 --workdir runs/even": SHORT,
    # The same work directory again: nothing is left to train.
    "python -m hra_jax.train --config NAME --workdir W": [*SHORT, "--config.data.dir=FOLDER"],
    "python -m hra_jax.data.manifest make NOISE --notranscripts --output NOISE/noise.jsonl": [],
    "python -m hra_jax.data.manifest make ROOMS --notranscripts --output ROOMS/rooms.jsonl": [],
    "python -m hra_jax.train --config own --config.data.dir=FOLDER --config.augment.noise_source=NOISE/noise.jsonl "
    "--config.augment.impulse_source=ROOMS/rooms.jsonl --config.augment.impulse_probability=0.3 "
    "--workdir runs/noisy": SHORT,
    "python -m hra_jax.train --config mine.py --workdir runs/mine": [*SHORT, "--config.hra.width=64"],
    "python -m hra_jax.train --config fsdd --config.data.dir=FSDD --workdir runs/fsdd": SHORT,
    "python -m hra_jax.train --config pretrain_tiny --workdir runs/pretrain_tiny": [
        *SHORT,
        "--config.data.synthetic=",
        "--config.batch.seconds=8",
    ],
    "python -m hra_jax.check --config NAME --workdir W": ["--config.data.dir=FOLDER", *SHORT],
    "python -m hra_jax.data.durations --config own --config.data.dir=FOLDER --output durations.json": [],
    "python -m hra_jax.aot --config own --config.batch.buckets=8 --durations durations.json --topology v5e:2x4 "
    "--config.batch.multiple=8": ["--plan"],
    "python -m hra_jax.transcribe --adapter runs/own/adapter --task SPEAKER a.wav b.flac": [],
    "python -m hra_jax.transcribe --adapter runs/own/adapter --task SPEAKER --json a.wav": [],
    "python -m hra_jax.transcribe --adapter runs/own/adapter --manifest FOLDER/test.jsonl --task_tag speaker "
    "--output texts.jsonl": [],
    "python -m hra_jax.transcribe --adapter runs/own/adapter --task SPEAKER --format vtt --output subtitles FOLDER": [],
    "python -m hra_jax.transcribe --adapter DIR --task NAME a.wav": [],
    "python -m hra_jax.evaluate --workdir W --suite NAME --step best": [],
    "python -m hra_jax.evaluate --workdir W --suite speakers --step best": [],
    "python -m hra_jax.evaluate --adapter runs/own/adapter --suite speakers,speakers_validation --output R "
    "--data_dir FOLDER": [],
    "python -m hra_jax.evaluate --predictions runs/own/eval/speakers --suite speakers --data_dir FOLDER "
    "--normalizer basic@1": [],
    "python -m hra_jax.lm make --workdir runs/own --output own.lm": [],
    "python -m hra_jax.lm make --text texts.txt --manifest FOLDER/train.jsonl --output other.lm": [],
    "python -m hra_jax.lm show own.lm --arpa own.arpa": [],
    "python -m hra_jax.lm make --arpa own.arpa --output again.lm": [],
    "python -m hra_jax.lm score own.lm --manifest FOLDER/test.jsonl": [],
    "python -m hra_jax.lm tune --adapter runs/own/adapter --suite speakers_validation --data_dir FOLDER "
    "--decode.lm=own.lm": ["--decode.beam=2", "--decode.token_bonus=1"],
    "python -m hra_jax.lm tune --workdir runs/own --suite speakers_validation --decode.lm=train": [
        "--decode.beam=2",
        "--decode.token_bonus=1",
    ],
    "python -m hra_jax.evaluate --workdir W --suite speakers --step best --decode.lm=train --decode.beam=8": [],
    "python -m hra_jax.compare W1 W2": [],
    "python -m hra_jax.verify PATH": [],
    "python -m hra_jax.verify runs/own": [],
    "python -m hra_jax.export runs/own/adapter --output served": [],
    "python -m hra_jax.export runs/own/adapter --output served --task SPEAKER": [],
    "python -m hra_jax.verify served": [],
    "python -m hra_jax.data.cache --source FOLDER/train.jsonl --output shards/train": ["--workers=2"],
    "python -m hra_jax.verify shards/train": [],
    "python -m hra_jax.tasks export-checkpoint --workdir runs/own --step last --output runs/again": [],
    W2V_BERT[0]: [],
    W2V_BERT[1]: [*QUICK[:2], "--config.batch.multiple=4", "--config.batch.buckets=(8.0,)"]
    + ["--config.batch.seconds=64", "--config.eval.batch_seconds=64"],
    "python -m hra_jax.transcribe --adapter runs/w2v_bert/adapter --backbone backbones/w2v_bert "
    "--task SPEAKER a.wav": [],
    "python -m hra_jax.convert --source DIR --output NEW": [],
    "python -m hra_jax.tasks list DIR": [],
    "python -m hra_jax.tasks list runs/own/adapter": [],
    "python -m hra_jax.tasks show runs/own/adapter SPEAKER": [],
    "python -m hra_jax.tasks add runs/own/adapter newcomer --init mean": [],
    "python -m hra_jax.tasks rename runs/own/adapter newcomer guest": [],
    "python -m hra_jax.tasks export runs/own/adapter guest --output runs/guest": [],
    "python -m hra_jax.tasks remove runs/own/adapter guest": [],
    "python -m hra_jax.tasks import runs/own/adapter runs/guest": [],
    "python -m hra_jax.tasks specialize runs/own/adapter SPEAKER --output runs/alone": [],
    "python -m hra_jax.tasks add runs/own/adapter newcomer --init mean --manifest M.jsonl": ["--steps=2"],
    "python -m hra_jax.tasks gate runs/own/adapter --suite speakers_validation --data_dir FOLDER": [],
    "python -m hra_jax.tasks calibrate runs/own/adapter --suite speakers_validation --data_dir FOLDER": [],
    "python -m hra_jax.tasks centroids runs/own/adapter --workdir runs/own": [],
    "python -m hra_jax.aot --config NAME --topology v5e:2x2": [*AHEAD, "--steps=transcription"],
    "python -m hra_jax.aot --config usm_2b_hra --topology v5e:16x16 --json aot.json": [
        *AHEAD,
        "--topology=v5e:2x2",
        "--steps=train",
        "--config.mesh.fsdp=2",
        "--config.pretrain.size=tiny",
    ],
    "python launch/local.py --processes 2 --devices 2 -- -m hra_jax.train --config quickstart "
    "--config.batch.multiple=4 --workdir runs/two": QUICK,
    SWEEP: SHORT,
}
# Placeholders of a table mean another thing in each row.
PLACES = {
    # A task that is trained on what the suite after it holds would be refused there.
    "python -m hra_jax.tasks add runs/own/adapter newcomer --init mean --manifest M.jsonl": {
        "M.jsonl": "FOLDER/train.jsonl"
    },
    SWEEP: {"1e-3,4e-3": "1e-3"},  # two runs of four
    "python -m hra_jax.train --config user_libri_hra --config.backbone=BACKBONE --config.data.dir=DATA "
    "--workdir runs/user_libri": {"BACKBONE": "builtin:tiny"},
    "python -m hra_jax.convert --source DIR --output NEW": {"DIR": "W2V_BERT", "NEW": "backbones/again"},
    "python -m hra_jax.aot --config NAME --topology v5e:2x2": {"NAME": "own"},
    "python -m hra_jax.train --config NAME --workdir W": {"NAME": "own", "W": "runs/own"},
    "python -m hra_jax.check --config NAME --workdir W": {"NAME": "own", "W": "runs/own"},
    "python -m hra_jax.evaluate --workdir W --suite NAME --step best": {"NAME": "speakers", "W": "runs/own"},
    "python -m hra_jax.evaluate --workdir W --suite speakers --step best": {"W": "runs/own"},
    "python -m hra_jax.evaluate --workdir W --suite speakers --step best --decode.lm=train --decode.beam=8": {
        "W": "runs/own"
    },
    "python -m hra_jax.transcribe --adapter DIR --task NAME a.wav": {"DIR": "runs/own/adapter", "NAME": "whisper"},
    "python -m hra_jax.data.synthesize --set hard --output DIR": {"DIR": "hard"},
    "python -m hra_jax.tasks list DIR": {"DIR": "runs/own/adapter"},
    "python -m hra_jax.verify PATH": {"PATH": "runs/own/adapter"},
    "python -m hra_jax.compare W1 W2": {"W1": "runs/own/eval/speakers", "W2": "runs/own/eval/speakers"},
    "python -m hra_jax.params --config NAME --tasks 1,10,100 --methods all": {"NAME": "own"},
}
# What downloads sixty gigabytes; tests/data/corpora prepares it from a small tree.
DOWNLOADS = {
    "python -m hra_jax.data.corpora prepare hra/librispeech/lazy_decode --data_dir DATA",
    "python -m hra_jax.data.cache --source seqio:hra/librispeech/lazy_decode/"
    "train,dev_clean,dev_other,test_clean,test_other --data_dir DATA --shards_dir gs://BUCKET/data",
}
# Commands of other programs, which need an account or a daemon that no test has; and of the shell itself.
FOREIGN = {
    "source .venv/bin/activate",
    "pip wheel --no-deps .",  # tests/test_packaging.py makes one
    "gcloud auth login",
    "gcloud config set project PROJECT",
    "gcloud storage buckets create gs://BUCKET --location us-west4",
    "gcloud storage cp --recursive FSDD gs://BUCKET/fsdd",
    "docker build -f launch/gke/Dockerfile -t IMAGE . && docker push IMAGE",
}


def fences(text: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def commands(text: str) -> list[str]:
    """What a page tells to type, in its order: lines of `sh` blocks, and code spans that begin like a command."""
    found = []
    text = generate._PART.sub("", text)
    prose = _FENCE.sub(lambda block: block[2] if block[1] == "sh" else "", text)
    in_block = {line for body in fences(text, "sh") for line in body.splitlines()}
    for line in prose.splitlines():
        if line in in_block:
            found += [line.split("  #")[0].strip()] if line.strip() and not line.startswith("#") else []
        else:
            found += re.findall(r"`((?:python |launch/[^`\s]+ |make |pip |gcloud |docker )[^`]*)`", line)
    return [found for found in found if found]


def typed() -> list[str]:
    """The commands of all pages, each once, in the order of their first mention."""
    return list(dict.fromkeys(command for text in PAGES.values() for command in commands(text)))


def is_launch(command: str) -> bool:
    """Whether it is a launcher that only prints what it would run when asked to: no pod is made by a test."""
    return command.startswith(("launch/", "python launch/gke/"))


def test_every_code_block_says_what_it_is():
    kinds = {language for text in PAGES.values() for language, _ in _FENCE.findall(text)}
    assert kinds <= {"sh", "python", "json", "text"}


def test_every_command_of_the_pages_is_run_below():
    makes = {command for command in typed() if command.startswith("make ")}
    launches = {command for command in typed() if is_launch(command)}
    assert set(typed()) - makes - launches == {*FAST, *SLOW, *FOREIGN, *DOWNLOADS} - {QUICKSTART}
    assert {"make quickstart", "make test", "make lint"} <= makes
    makefile = (ROOT / "Makefile").read_text()
    assert QUICKSTART.split()[1:5] == re.search(r"^quickstart:.*\n\t\S+ (.*) --workdir", makefile, re.M)[1].split()


def test_every_make_target_of_the_pages_is_there():
    for command in typed():
        if command.startswith("make "):
            done = subprocess.run(
                ["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0 and done.stdout, f"{command}\n{done.stderr}"


@pytest.mark.slow
def test_every_launch_command_of_the_pages_runs_dry(tmp_path, command_env):
    found = [command for command in typed() if is_launch(command) or "launch/sweep.py" in command]
    names = {Path(re.search(r"launch/\S+", command)[0]).name for command in found}
    assert names == {"create.sh", "wait.sh", "setup.sh", "run.sh", "delete.sh", "resume.sh", "jobset.py", "sweep.py"}
    for command in found:
        words = shlex.split(command)
        python, (script, *rest) = (words[:1], words[1:]) if words[0] == "python" else ([], words)
        line = [*([sys.executable] if python else []), str(ROOT / script), "--dry-run", *rest]
        env = command_env | {"PYTHON": sys.executable}
        done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout, f"{command}\n{done.stderr}"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to type in: rendered speech, and recordings with transcripts, a folder for each speaker."""
    here = tmp_path_factory.mktemp("here")
    (here / "benchmarks" / "results").mkdir(parents=True)
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
    corpus_trees.librispeech(here / "CORPUS")
    corpus_trees.user_libri(here / "DOWNLOADED")
    (here / "mine.py").write_text(python_of("docs/configuration.md"))
    (here / "texts.txt").write_text("turn the kitchen light on\ncall anna before nine\n")
    first = sorted((here / "FOLDER" / "plain").glob("*.flac"))
    names = ("a.wav", "b.flac", "NOISE/street.wav", "ROOMS/kitchen.wav")
    for name, source in zip(names, (*first[:2], *first[:2]), strict=True):
        (here / name).parent.mkdir(exist_ok=True)
        soundfile.write(here / name, *soundfile.read(source))
    return here


@pytest.fixture(scope="module")
def speech(place) -> None:
    """The synthetic sets that configurations render by themselves, and a corpus from the network, much smaller."""
    with prepared_trees.downloaded(prepared_trees.ljspeech(place)):
        prepared.prepare("hra/ljspeech", place / "DATA", report=DataReport())
    synthesize.render("hard", place / "runs/data/hard", scale=0.02, progress=False)
    synthesize.render("plain", place / "runs/data/plain", scale=0.004, progress=False)


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    """What commands have printed that were run in `place`."""
    return {}


@pytest.fixture
def run(place, printed, command_env, tpu_lock) -> Callable[[str], str]:
    """Runs a command of the pages in `place`, once: what another test has run there is not run again."""

    def once(command: str) -> str:
        if command not in printed:
            words = shlex.split(command)[1:] + (FAST | SLOW)[command]
            # Scripts lie in the checkout, and the commands are typed elsewhere.
            words = [str(ROOT / word) if word.startswith(("launch/", "docs/")) else word for word in words]
            for name, value in ({"SPEAKER": "whisper"} | PLACES.get(command, {})).items():
                words = [re.sub(rf"\b{name}\b", value, word) for word in words]
            alone = launching.one_at_a_time(tpu_lock) if "hra_jax.aot" in command else contextlib.nullcontext()
            with alone:
                printed[command] = executed(words, place, command_env, what=command)
        return printed[command]

    return once


def executed(words: list[str], place: Path, env: dict[str, str], *, what: str) -> str:
    done = subprocess.run([sys.executable, *words], cwd=place, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def python_of(page: str) -> str:
    """The one Python block of a page."""
    (code,) = fences(PAGES[page], "python")
    return code


def test_the_quick_commands_of_the_pages_run_in_their_order(run):
    for command in typed():
        if command in FAST:
            run(command)


@pytest.mark.slow(minutes=6)
def test_the_commands_of_the_pages_run_in_their_order(place, speech, run):
    run(QUICKSTART)
    for command in typed():
        if command in {*FAST, *SLOW}:
            run(command)
    for name in ("quickstart", "own", "mine", "fsdd", "w2v_bert"):
        assert (place / "runs" / name / "adapter" / "adapter_model.safetensors").exists()
    assert (place / "runs" / "pretrain_tiny" / "backbone").exists()
    transcripts = run("python -m hra_jax.transcribe --adapter runs/own/adapter --task SPEAKER a.wav b.flac")
    assert "a.wav" in transcripts and "b.flac" in transcripts


@pytest.mark.slow
def test_the_python_of_the_readme_runs_after_the_quickstart(place, speech, run, command_env):
    run(QUICKSTART)
    before = "import soundfile\nwaveforms = [soundfile.read(name)[0] for name in ('a.wav', 'b.flac')]\n"
    after = "\nassert len(texts) == 2 and log_probs.shape[0] == 2 and 'whisper' in model.tasks\n"
    executed(["-c", before + python_of("README.md") + after], place, command_env, what="README.md")


@pytest.mark.slow
def test_the_pytorch_of_the_pages_runs_after_its_commands(place, run, command_env):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    for command in (MANIFESTS, *W2V_BERT):
        run(command)
    before = "import numpy\nwaveforms = [numpy.random.default_rng(0).normal(size=n) for n in (16000, 12000)]\n"
    after = "\nassert len(texts) == 2 and logits.shape[0] == 2\n"
    executed(["-c", before + python_of("docs/encoders.md") + after], place, command_env, what="docs/encoders.md")


@pytest.mark.slow(minutes=0.3)
def test_the_training_from_python_of_the_pages_runs(place, command_env):
    before = (
        "import hra_jax, numpy\nbackbone = hra_jax.load_backbone('builtin:tiny')\n"
        "waveform, another = (numpy.random.default_rng(0).normal(size=n) for n in (16000, 24000))\n"
        "pairs = [(waveform, 'hello')]\n"
    )
    code = re.sub(r"steps=\d+", "steps=1", python_of("docs/tasks.md"))
    executed(
        ["-c", before + code + "\nassert more.tasks == ('ann', 'bob')\n"], place, command_env, what="docs/tasks.md"
    )


@pytest.mark.slow(minutes=0.3)
def test_the_server_of_the_pages_runs(run, place, command_env):
    run(MANIFESTS)
    run("python -m hra_jax.train --config own --config.data.dir=FOLDER --workdir runs/own")
    run("python -m hra_jax.export runs/own/adapter --output served")
    (code,) = fences(generate._PART.sub("", PAGES["docs/serving.md"]), "python")
    before = (
        "import numpy\n"
        "waveform, another = (numpy.random.default_rng(0).normal(size=n).astype('float32') for n in (9000, 16000))\n"
    )
    after = "\nassert 'hra_jax' not in sys.modules and [row.shape[1] for row in found] == [29, 29]\n"
    code = before + code.replace("anna.safetensors", "whisper.safetensors") + after
    executed(["-c", code], place, command_env, what="docs/serving.md")


@pytest.mark.slow
def test_the_decoding_from_python_of_the_pages_runs_after_the_quickstart(place, speech, run, command_env):
    run(QUICKSTART)
    with_models, without_tasks = fences(PAGES["docs/decoding.md"], "python")
    parts = (
        "texts = ['call anna schmidt', 'a table for two', 'call a taxi']",
        with_models,
        "assert len(found.alternatives) <= 3 and [word.text for word in found.words] == found.text.split()",
        without_tasks,
        "assert found[0].task == found[1].task and found[0].task in (*model.tasks, '__base__')",
    )
    executed(["-c", "\n".join(parts)], place, command_env, what="docs/decoding.md")


def test_the_suite_that_the_pages_show_is_the_ready_made_one():
    def suite(code: str) -> ConfigDict:
        space: dict = {}
        exec(code, space)
        return space["get_config"]()

    ready_made = (ROOT / "configs" / "suites" / "speakers.py").read_text()
    assert suite(python_of("docs/evaluation.md")).to_dict() == suite(ready_made).to_dict()


def test_no_python_of_the_pages_is_left_out():
    pages = ("configuration", "decoding", "encoders", "evaluation", "serving", "tasks")
    run_above = {"README.md", *(f"docs/{name}.md" for name in pages)}
    assert {page for page, text in PAGES.items() if fences(text, "python")} == run_above


@pytest.mark.parametrize("page", PAGES)
def test_json_of_the_pages_is_json(page):
    for body in fences(PAGES[page], "json"):
        for line in body.splitlines():
            json.loads(line)


# ======================================================================================================================
# What the pages name
# ======================================================================================================================


def outside(page: str, *, but: str = "") -> str:
    """A page without code blocks and generated parts, and without the section whose heading begins with `but`."""
    text = generate._PART.sub("", _FENCE.sub("", PAGES[page]))
    if but:
        text = re.sub(rf"^## {re.escape(but)}.*?(?=^## |\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    return text


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page):
    folders = "hra_jax|configs|launch|notebooks|benchmarks|tests|docs"
    named = set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w./-]*\w)", PAGES[page]))
    linked = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", PAGES[page]))
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [name for name in linked if not (ROOT / page).parent.joinpath(name).exists()]
    assert sorted(missing) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_into_a_page_finds_its_heading(page):
    missing = []
    for name, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", PAGES[page]):
        target = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
        headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", target.read_text()), flags=re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        missing += [f"{name}#{anchor}"] * (anchor not in slugs)
    assert missing == []


def has(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or a name at the top of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()]
        if files or path.is_dir():
            rest = parts[length:]
            return not rest or (bool(files) and len(rest) == 1 and rest[0] in names_of(files[0]))
    return False


def names_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # names that are imported when asked for
            found.add(node.value)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_function_that_a_page_names_exists(page):
    named = set(re.findall(r"\bhra_jax(?:\.\w+)+", PAGES[page]))
    assert [name for name in sorted(named) if not has(name)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_configuration_key_that_a_page_names_exists(page):
    keys = set(generate.known_keys())
    groups = {key.split(".")[0] for key in keys if "." in key}
    text = outside(page, but="Keys that were renamed")
    named = set(re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", PAGES[page]))
    named |= set(re.findall(rf"`((?:{'|'.join(groups)})\.[a-z_]+)`", text))
    files = {name for name in named if name.rsplit(".")[-1] in ("py", "json", "md", "png", "html", "jsonl")}
    assert sorted(named - files - keys - groups) == []


# ======================================================================================================================
# What the pages say
# ======================================================================================================================


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


@pytest.mark.parametrize("page", PAGES)
def test_generated_parts_are_up_to_date(page):
    assert generate.regenerated(PAGES[page]) == PAGES[page], "run: python docs/generate.py"


def test_the_page_has_every_key_of_the_configurations():
    space: dict = {}
    exec((ROOT / "configs" / "base.py").read_text(), space)
    config = space["get_config"]()
    leaves = {key for key, value in config.items() if not isinstance(value, ConfigDict)}
    leaves |= {f"{group}.{key}" for group in set(config.keys()) - leaves for key in config[group]}
    rows = re.findall(r"^\| `([\w.]+)` \|", generate.keys(), flags=re.MULTILINE)
    assert sorted(rows) == sorted(leaves) and generate.keys() in PAGES["docs/configuration.md"]


# What is a setting, a constant or a convention in prose, and was not measured.
_NOT_MEASURED = {"95%", "20 ms", "12 MiB"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("CHANGELOG.md", "CONTRIBUTING.md")])
def test_every_measured_figure_in_prose_stands_in_a_table_of_committed_cells(page):
    tables = "\n".join(part() for name, part in generate.PARTS.items() if name not in ("keys", "modules"))
    figures = re.findall(r"\d[\d,.]*(?:%| ms\b| [GM]i?B\b| minutes\b)", outside(page))
    unfounded = [
        figure
        for figure in figures
        if figure not in _NOT_MEASURED and not re.search(rf"(?<![\d.,]){re.escape(figure)}", tables)
    ]
    assert unfounded == []


def test_an_invented_figure_and_an_unknown_command_would_be_noticed(monkeypatch):
    invented = {"README.md": "It makes 12.34% errors.\n\n```sh\npython -m hra_jax.invented --fast\n```\n"}
    monkeypatch.setattr(sys.modules[__name__], "PAGES", invented)
    with pytest.raises(AssertionError, match=r"12\.34%"):
        test_every_measured_figure_in_prose_stands_in_a_table_of_committed_cells("README.md")
    assert typed() == ["python -m hra_jax.invented --fast"]
    with pytest.raises(AssertionError):
        test_every_command_of_the_pages_is_run_below()
    with pytest.raises(AssertionError, match="invented"):
        test_every_module_and_function_that_a_page_names_exists("README.md")
