"""The JobSet for GKE: its fields, what starts again, and what is refused before there is a manifest."""

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from reference import launching

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "launch" / "gke" / "jobset.py"
FLAGS = ["--name", "run", "--topology", "v5e:4x4", "--config", "fsdd", "--workdir", "gs://bucket/runs/fsdd"]
FLAGS += ["--image", "python:3.12", "--config.batch.multiple=16", "--config.batch.seconds=160"]
PYTHON = sys.executable
KUBECTL = """#!{python}
import pathlib, sys
pathlib.Path("words").write_text(" ".join(sys.argv[1:]))
pathlib.Path("given").write_text(sys.stdin.read())
sys.exit(4)
"""
TWO = ["--slices=2", "--config.batch.multiple=32"]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    return launching.remembering_python(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def jobset(command_env, python, tmp_path, monkeypatch, capfd):
    """Runs the script in this process; what it starts finds nothing but `tmp_path` on its PATH."""
    spec = importlib.util.spec_from_file_location("jobset", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for name, value in (command_env | {"PATH": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> subprocess.CompletedProcess:
        try:
            status = script.main(list(words))
        except SystemExit as ended:
            status = ended.code
        return subprocess.CompletedProcess(words, status, *capfd.readouterr())

    return call


def manifest(text: str) -> tuple[dict, dict, dict]:
    """The JobSet, its one replicated job and the pod's spec."""
    found = yaml.safe_load(text)
    (job,) = found["spec"]["replicatedJobs"]
    return found, job, job["template"]["spec"]["template"]["spec"]


def test_a_slice_is_a_job_and_a_host_is_a_pod(jobset):
    done = jobset(*FLAGS, *TWO, "--spot", "--service-account", "trainer", "--namespace", "speech")
    assert done.returncode == 0, done.stderr
    found, job, pod = manifest(done.stdout)
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("run", "speech")
    exclusive = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert found["metadata"]["annotations"] == exclusive
    assert job["replicas"] == 2
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (4, 4, "Indexed")
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert pod["serviceAccountName"] == "trainer"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"] == {"google.com/tpu": 4}
    shell, flag, text = container["command"]
    look, training = text.split(" && exec ")
    assert (shell, flag, look.replace("hra_jax.check", "hra_jax.train")) == (
        "bash",
        "-c",
        training,
    ) and look != training
    assert shlex.split(training) == [
        *("python", "-m", "hra_jax.train", "--config", "fsdd", "--workdir", "gs://bucket/runs/fsdd"),
        *("--config.mesh.slices=2", "--config.batch.multiple=16", "--config.batch.seconds=160"),
        "--config.batch.multiple=32",
    ]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/runs/compile_cache"


@pytest.mark.parametrize(
    ("topology", "hosts", "chips", "accelerator"),
    [
        ("v4:2x2x4", 4, 4, "tpu-v4-podslice"),
        ("v5p:2x2x1", 1, 4, "tpu-v5p-slice"),
        ("v5e:2x4", 1, 8, "tpu-v5-lite-podslice"),
        ("v6e:4x4", 4, 4, "tpu-v6e-slice"),
    ],
)
def test_every_generation_has_its_nodes(jobset, topology, hosts, chips, accelerator):
    _, job, pod = manifest(jobset(*FLAGS, "--topology", topology).stdout)
    selector = pod["nodeSelector"]
    assert job["template"]["spec"]["parallelism"] == hosts
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.split(":")[1]
    assert "cloud.google.com/gke-spot" not in selector and "tolerations" not in pod


def test_a_stopped_run_and_a_lost_node_start_again_without_end_and_other_failures_a_few_times(jobset):
    found, job, pod = manifest(jobset(*FLAGS, "--max-restarts", "4").stdout)
    policy = found["spec"]["failurePolicy"]
    assert (policy["maxRestarts"], policy["restartStrategy"]) == (4, "BlockingRecreate")
    (rule,) = policy["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    spec = job["template"]["spec"]
    stopped, lost = spec["podFailurePolicy"]["rules"]
    assert stopped["action"] == lost["action"] == "FailJob"
    codes = {"containerName": pod["containers"][0]["name"], "operator": "In", "values": [75]}
    assert stopped["onExitCodes"] == codes
    assert lost["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    # Kubernetes refuses a podFailurePolicy with another restart policy.
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")


def test_a_source_is_installed_and_the_training_then_is_process_one(jobset):
    override = "--config.data.sources=(('a', 'x y', 1.0),)"
    _, _, pod = manifest(jobset(*FLAGS, override, "--source", "git+https://host/x", "--host-network").stdout)
    shell, flag, text = pod["containers"][0]["command"]
    assert (shell, flag) == ("bash", "-c")
    install, look, training = text.split(" && ")
    assert shlex.split(install)[-1] == "hra_jax[tpu] @ git+https://host/x"
    assert f"exec {look.replace('hra_jax.check', 'hra_jax.train')}" == training != f"exec {look}"
    training = training.removeprefix("exec ")
    assert shlex.split(training)[:3] == ["python", "-m", "hra_jax.train"] and shlex.split(training)[-1] == override
    assert pod["hostNetwork"] is True and pod["dnsPolicy"] == "ClusterFirstWithHostNet"


def test_a_run_that_is_not_looked_at_first_is_process_one_at_once(jobset):
    _, _, pod = manifest(jobset(*FLAGS, "--no-check").stdout)
    assert pod["containers"][0]["command"][:3] == ["python", "-m", "hra_jax.train"]


def test_a_dry_run_prints_the_plan_the_manifest_and_kubectl(jobset, tmp_path):
    done = jobset(*FLAGS, "--apply", "--output", "jobset.yaml", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    plan, *text, apply = done.stdout.splitlines()
    assert shlex.split(plan)[1:] == [
        *("-m", "hra_jax.aot", "--config", "fsdd", "--topology", "v5e:4x4", "--plan", "--config.mesh.slices=1"),
        *("--config.batch.multiple=16", "--config.batch.seconds=160"),
    ]
    assert apply == "kubectl apply -f jobset.yaml"
    assert manifest("\n".join(line.removeprefix("# ") for line in text))[0]["kind"] == "JobSet"
    assert list(tmp_path.iterdir()) == []


def test_apply_hands_the_manifest_to_kubectl_and_returns_its_status(jobset, tmp_path):
    done = jobset(*FLAGS, "--apply")
    assert done.returncode == 2 and "kubectl" in done.stderr.splitlines()[-1]
    (tmp_path / "kubectl").write_text(KUBECTL.format(python=PYTHON))
    (tmp_path / "kubectl").chmod(0o755)
    assert jobset(*FLAGS, "--apply").returncode == 4
    assert (tmp_path / "words").read_text() == "apply -f -"
    assert (tmp_path / "given").read_text() == jobset(*FLAGS).stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([*FLAGS, "--topology", "v5e:5x5"], ["v5e:5x5", "16x16"]),
        ([*FLAGS, "--topology", "cpu-8"], ["cpu-8", "v5e:16x16"]),
        ([*FLAGS, "--config.mesh.tensor=5"], ["mesh.tensor = 5", "16"]),
        ([*FLAGS, "--config.batch.seconds=8"], ["8 s of audio", "8.32 s"]),
        ([*FLAGS, "--slices", "2", "--topology", "v5e:2x4"], ["--slices 2", "one host"]),
        ([*FLAGS, "--config.mesh.slices=2"], ["--slices sets mesh.slices"]),
        ([*FLAGS, "--config.data.strict"], ["--config.data.strict=VALUE"]),
        ([*FLAGS, "--workdir", "runs/x"], ["runs/x", "gs://BUCKET/FOLDER"]),
        ([*FLAGS, "--config", "configs/fsdd.py"], ["configs/fsdd.py", "gs://"]),
        ([*FLAGS, "--name", "Run"], ["'Run'"]),
        ([*FLAGS, "--slices", "none"], ["'none'", "at least 1"]),
        ([*FLAGS, "--nmae", "x"], ["--nmae"]),
        ([*FLAGS, "--output", "/dev/null"], ["/dev/null"]),
        (FLAGS[2:], ["--name"]),
    ],
)
def test_a_mistake_is_one_line_and_no_manifest(jobset, words, told):
    done = jobset(*words)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.splitlines()[-1]
    assert "error: " in line and [text for text in told if text not in line] == []
    assert len(done.stderr.splitlines()) == 1 or "--output" in words  # by then the plan was shown


def test_help_describes_the_script(command_env, tmp_path):
    command = [PYTHON, SCRIPT, "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=command_env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--dry-run" in done.stdout and "JobSet" in done.stdout


def test_the_image_has_what_setup_needs():
    lines = (REPOSITORY / "launch" / "gke" / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert [name for name in sorted(copied) if not (REPOSITORY / name).exists()] == []
    assert copied >= {"setup.py", "README.md", "hra_jax", "configs"}
