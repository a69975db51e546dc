"""One JobSet for a training run on TPU slices of a GKE cluster.

    python launch/gke/jobset.py --name NAME --topology v5e:16x16 --config NAME --workdir gs://B/FOLDER \
        --image IMAGE > jobset.yaml

prints the manifest; `--apply` hands it to kubectl. The cluster has node pools of that topology, one for each slice, and
JobSet 0.8 or newer. Words such as --config.key=value are passed on to the training command.

A run that was told to stop (status 75) and one whose node was taken away start again as often as it takes, from the
last checkpoint; after any other failure the JobSet starts again --max-restarts times. The configuration is checked
first: topology, mesh and buckets that do not fit end with one line and status 2.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from hra_jax.errors import UserError
from hra_jax.storage.files import check_output, write_file
from hra_jax.tpu import topologies

USER_ERROR = 2
STOPPED = 75  # of a run that was told to stop and has saved
_NAME = "launch/gke/jobset.py"
_CONTAINER = "train"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        """Ends with one line in place of argparse's usage."""
        print(f"{_NAME}: error: {message}", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def _at_least(low: int):
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number of at least {low}")
        return int(text)

    return parse


def _matches(pattern: str, allowed: str):
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: {allowed}")
        return text.rstrip("/")

    return parse


def _parser() -> _Parser:
    parser = _Parser(
        prog=f"python {_NAME}",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        # Or --conf=x would be --config, and --config.key=value a mistake that depends on the other flags.
        allow_abbrev=False,
    )
    label = _matches(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", "at most 40 small letters, digits and -, a letter first")
    storage = _matches(r"gs://[^/]+/.+", "gs://BUCKET/FOLDER, since pods share no disk")
    parser.add_argument("--name", type=label, required=True, help="of the JobSet")
    parser.add_argument("--topology", required=True, help="of a slice, such as v5e:16x16")
    parser.add_argument("--slices", type=_at_least(1), default=1, help="default: 1")
    config = _matches(r"[\w-]+|gs://.+\.py", "a ready-made name, which is in the image, or gs://.../file.py")
    parser.add_argument("--config", type=config, required=True, help="a ready-made configuration, or gs://.../file.py")
    parser.add_argument("--workdir", type=storage, required=True, help="work directory of the run, gs://...")
    parser.add_argument("--compile-cache", type=storage, help="default: compile_cache beside the work directory")
    parser.add_argument("--image", required=True, help="one with hra_jax[tpu], or a Python for --source")
    parser.add_argument("--source", help="URL of the package, installed at the start of every pod")
    parser.add_argument("--namespace", type=label, help="default: kubectl's")
    parser.add_argument("--service-account", type=label, help="Kubernetes service account that may use the bucket")
    parser.add_argument("--spot", action="store_true", help="nodes that may be taken away at any time")
    parser.add_argument("--host-network", action="store_true", help="the node's network: faster between slices")
    parser.add_argument("--max-restarts", type=_at_least(0), default=10, help="after failures; default: 10")
    parser.add_argument("--output", type=Path, help="file for the manifest; default: stdout")
    parser.add_argument("--apply", action="store_true", help="hand the manifest to kubectl")
    parser.add_argument("--no-check", action="store_true", help="train without hra_jax.check, which looks first")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, a command a line; touch nothing")
    return parser


def parse(words: list[str]) -> argparse.Namespace:
    """Reads the command line; `.overrides` are the words such as --config.key=value.

    Raises:
      SystemExit: 2, with one line on stderr, where it is wrong.
    """
    parser = _parser()
    overrides = [word for word in words if word.startswith("--config.")]
    arguments = parser.parse_args([word for word in words if not word.startswith("--config.")])
    for word in overrides:
        if "=" not in word:
            parser.error(f"{word}: a value is missing; allowed: {word}=VALUE")
        if word.startswith("--config.mesh.slices="):
            parser.error(f"{word}: --slices sets mesh.slices")
    arguments.overrides = [f"--config.mesh.slices={arguments.slices}", *overrides]
    arguments.compile_cache = arguments.compile_cache or f"{arguments.workdir.rsplit('/', 1)[0]}/compile_cache"
    try:
        arguments.slice = topologies.parse(arguments.topology)
    except UserError as error:
        parser.error(str(error))
    if arguments.slice.generation == "cpu":
        parser.error(f"--topology {arguments.topology!r} is no TPU; allowed: a name such as v5e:16x16")
    if arguments.slices > 1 and arguments.slice.hosts == 1:
        parser.error(
            f"--slices {arguments.slices}: {arguments.topology} is one host; GKE joins slices of several hosts"
        )
    return arguments


def _selector(arguments: argparse.Namespace) -> dict:
    """The nodes that the pods run on."""
    selector = {
        "cloud.google.com/gke-tpu-accelerator": arguments.slice.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": "x".join(map(str, arguments.slice.grid)),
    }
    if arguments.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector


def _pod(arguments: argparse.Namespace) -> dict:
    """The pod of one host."""
    words = ["--config", arguments.config, "--workdir", arguments.workdir, *arguments.overrides]
    training = ["python", "-m", "hra_jax.train", *words]
    before = []
    if arguments.source:
        before.append(["python", "-m", "pip", "install", "--quiet", f"hra_jax[tpu] @ {arguments.source}"])
    if not arguments.no_check:
        before.append(["python", "-m", "hra_jax.check", *words])
    if before:
        # exec: SIGTERM goes to process 1, which must be the training.
        shell = " && ".join([*map(shlex.join, before), f"exec {shlex.join(training)}"])
        training = ["bash", "-c", shell]
    chips = arguments.slice.chips_per_host
    container = {
        "name": _CONTAINER,
        "image": arguments.image,
        "command": training,
        "env": [
            {"name": "JAX_COMPILATION_CACHE_DIR", "value": arguments.compile_cache},
            {"name": "PYTHONUNBUFFERED", "value": "1"},
        ],
        # 8471 and 8080 are libtpu's, 8482 is that of jax.distributed.
        "ports": [{"containerPort": port} for port in (8471, 8080, 8482)],
        "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
    }
    pod = {
        # podFailurePolicy wants it: JobSet starts all pods again, never one alone.
        "restartPolicy": "Never",
        # Time to finish a step and to save.
        "terminationGracePeriodSeconds": 300,
        "nodeSelector": _selector(arguments),
        "containers": [container],
    }
    if arguments.spot:
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        pod["tolerations"] = [spot]
    if arguments.service_account:
        pod["serviceAccountName"] = arguments.service_account
    if arguments.host_network:
        pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def manifest(arguments: argparse.Namespace) -> dict:
    """The JobSet: a job for each slice, a pod for each host."""
    metadata = {
        "name": arguments.name,
        # One slice to a node pool: pods of two slices never share one.
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
    }
    if arguments.namespace:
        metadata["namespace"] = arguments.namespace
    stopped = {"containerName": _CONTAINER, "operator": "In", "values": [STOPPED]}
    taken_away = {"type": "DisruptionTarget", "status": "True"}
    job = {
        "parallelism": arguments.slice.hosts,
        "completions": arguments.slice.hosts,
        "completionMode": "Indexed",
        # One lost process ends them all, so a job fails with its first pod.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": stopped},
                {"action": "FailJob", "onPodConditions": [taken_away]},
            ]
        },
        "template": {"spec": _pod(arguments)},
    }
    again = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    policy = {"maxRestarts": arguments.max_restarts, "restartStrategy": "BlockingRecreate", "rules": [again]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": policy,
            "replicatedJobs": [{"name": "slice", "replicas": arguments.slices, "template": {"spec": job}}],
        },
    }


def to_yaml(value, indent: int = 0) -> list[str]:
    """Lines of YAML for dicts, lists, strings, numbers and booleans; what needs quotes is written as in JSON."""
    space = " " * indent
    lines = []
    for key, item in value.items() if isinstance(value, dict) else (("-", item) for item in value):
        start = "- " if key == "-" else f"{key}: "
        if isinstance(item, (dict, list)) and item:
            inner = to_yaml(item, indent + 2)
            if key == "-":
                # The first line of what is inside stands behind the dash.
                lines += [f"{space}- {inner[0].lstrip()}", *inner[1:]]
            else:
                lines += [f"{space}{key}:", *inner]
        else:
            lines.append(f"{space}{start}{_scalar(item)}")
    return lines


def _scalar(value) -> str:
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and value.lower() not in words
    return value if plain else json.dumps(value)


def _check_plan(arguments: argparse.Namespace) -> list[str]:
    """Ends where topology, mesh and buckets do not fit; returns the command that said so."""
    command = [sys.executable, "-m", "hra_jax.aot", "--config", arguments.config, "--topology", arguments.topology]
    command += ["--plan", *arguments.overrides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    if not arguments.dry_run:
        # On stderr, since stdout is the manifest's.
        print(done.stdout, end="", file=sys.stderr)
    return command


def main(words: list[str]) -> int:
    """Entry point; returns the exit status."""
    arguments = parse(words)
    try:
        if arguments.output:
            check_output(arguments.output, name="--output")
    except UserError as error:
        print(f"{_NAME}: error: {error}", file=sys.stderr)
        return USER_ERROR
    plan = _check_plan(arguments)
    text = "\n".join(to_yaml(manifest(arguments))) + "\n"
    apply = ["kubectl", "apply", "-f", str(arguments.output or "-")]
    if arguments.dry_run:
        print(shlex.join(plan))
        for line in text.splitlines():
            print(f"# {line}")
        if arguments.apply:
            print(shlex.join(apply))
        return 0
    if arguments.output:
        try:
            write_file(arguments.output, text)
        except OSError as error:
            print(f"{_NAME}: error: --output {str(arguments.output)!r}: {error.strerror}", file=sys.stderr)
            return USER_ERROR
    elif not arguments.apply:
        print(text, end="")
    if not arguments.apply:
        return 0
    try:
        return subprocess.run(apply, input=None if arguments.output else text, text=True, check=False).returncode
    except FileNotFoundError:
        print(f"{_NAME}: error: --apply needs kubectl, which is not installed", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
