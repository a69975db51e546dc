"""TPU topologies by name: chips, hosts, what a chip can do, and the absent devices to compile for.

    python -m hra_jax.tpu.topologies v5e:16x16

prints what the launch scripts need. A name is GENERATION:GRID, such as v5e:16x16 or v5p:4x4x4; cpu-N stands for N
devices of this machine's processor. The compiler for TPUs is the library libtpu; no TPU is needed.
"""

import dataclasses
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from etils import epath

from hra_jax import cli
from hra_jax.console import tell
from hra_jax.errors import UserError

if TYPE_CHECKING:
    import jax

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # the grids of v5e and v6e
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # of v4 and v5p; larger ones are multiples of 4 each way
_MOST_CHIPS = {"v4": 4096, "v5p": 6144}
_NAME = re.compile(r"(v\w+):(\d+(?:x\d+){1,2})")
_GIB = 2**30
_CPU = re.compile(r"cpu-([1-9]\d{0,3})")


class Chip(NamedTuple):
    """What one chip can do, as its maker's documentation gives it (docs.cloud.google.com/tpu)."""

    hbm_bytes: float  # of which the compiler keeps a little for the system: of 16 GiB it gives out 15.75
    flops: float  # peak FLOPs per second in bfloat16
    hbm_bandwidth: float  # bytes per second to and from HBM
    ici_bandwidth: float  # bytes per second out of the chip over the inter-chip interconnect, all links together
    dcn_bandwidth: float  # bytes per second over the data centre network, a chip's share
    accelerator: str  # accelerator type without its number
    per_name: int  # what the number in an accelerator type counts for each chip: cores, or chips
    gke: str  # value of cloud.google.com/gke-tpu-accelerator


# The share of the DCN is that of a host with 4 chips; v4 and v5p hosts have 50 and 200 Gbit/s.
CHIPS = {
    "v4": Chip(32 * _GIB, 275e12, 1.228e12, 300e9, 1.6e9, "v4", 2, "tpu-v4-podslice"),
    "v5e": Chip(16 * _GIB, 197e12, 0.819e12, 200e9, 3.1e9, "v5litepod", 1, "tpu-v5-lite-podslice"),
    "v5p": Chip(95 * _GIB, 459e12, 2.765e12, 600e9, 6.2e9, "v5p", 2, "tpu-v5p-slice"),
    "v6e": Chip(32 * _GIB, 918e12, 1.6e12, 400e9, 12.5e9, "v6e", 1, "tpu-v6e-slice"),
}
# What JAX calls a device, and its peak in bfloat16: FLOPs per second, without sparsity.
_GENERATIONS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
_GPUS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def peak_flops(device_kind: str) -> float:
    """Peak FLOPs per second of a device in bfloat16; 0 where it is not known.

    Args:
      device_kind: as `jax.Device.device_kind` has it.
    """
    if device_kind in _GENERATIONS:
        return CHIPS[_GENERATIONS[device_kind]].flops
    return next((peak for name, peak in _GPUS.items() if name in device_kind), 0.0)


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice of chips; `generation` 'cpu' for devices of this machine's processor."""

    name: str
    generation: str
    grid: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Chips of a slice."""
        return math.prod(self.grid)

    @property
    def chip(self) -> Chip | None:
        """What a chip can do; None for 'cpu'."""
        return CHIPS.get(self.generation)

    @property
    def chips_per_host(self) -> int:
        """Chips of one host: v5e and v6e slices of up to 8 chips are one host, all others have 4 to a host."""
        alone = 8 if self.generation in ("v5e", "v6e") else 4
        return self.chips if self.chips <= alone or self.generation == "cpu" else 4

    @property
    def hosts(self) -> int:
        """Hosts of a slice."""
        return self.chips // self.chips_per_host

    @property
    def accelerator_type(self) -> str:
        """Its accelerator type, such as v5litepod-256; '' for 'cpu'."""
        return f"{self.chip.accelerator}-{self.chips * self.chip.per_name}" if self.chip else ""

    @property
    def gke_accelerator(self) -> str:
        """The accelerator of GKE's node selector; '' for 'cpu'."""
        return self.chip.gke if self.chip else ""


def parse(name: str) -> Topology:
    """The topology of a name.

    Raises:
      UserError: no such generation, or a grid that it does not come in.
    """
    if found := _CPU.fullmatch(name):
        return Topology(name, "cpu", (int(found[1]),))
    found = _NAME.fullmatch(name)
    if not found:
        raise UserError(f"topology {name!r}: allowed are names such as v5e:16x16, v5p:4x4x4 and cpu-8")
    generation, grid = found[1], tuple(int(size) for size in found[2].split("x"))
    if generation not in CHIPS:
        raise UserError(f"topology {name!r}: generations are {', '.join(CHIPS)}")
    if generation in _MOST_CHIPS:
        small, chips = found[2] in _SMALL_CUBES, math.prod(grid)
        cube = len(grid) == 3 and all(size and size % 4 == 0 for size in grid) and chips <= _MOST_CHIPS[generation]
        allowed = f"{', '.join(_SMALL_CUBES)} and multiples of 4 each way, up to {_MOST_CHIPS[generation]} chips"
        fits = small or cube
    else:
        allowed, fits = ", ".join(_FLAT), found[2] in _FLAT
    if not fits:
        raise UserError(f"topology {name!r}: {generation} comes in {allowed}")
    return Topology(name, generation, grid)


def devices(topology: Topology, slices: int = 1) -> "list[jax.Device]":
    """The devices to compile for: absent ones of a TPU, or this machine's.

    It must be called before JAX has looked for devices: it says how many there are, and where the compiler is.

    Raises:
      UserError: the compiler for TPUs is not installed, or several slices of 'cpu'.
    """
    import jax  # late: the launch scripts only ask for names
    from jax.experimental import topologies

    if topology.generation == "cpu":
        if slices != 1:
            raise UserError(f"mesh.slices = {slices}: {topology.name} has no slices; allowed is 1")
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", topology.chips)
        return jax.devices()
    find_compiler()
    # No questions to the cloud's metadata server, which is not there; and no lock of chips that are not there, so that
    # several processes may compile at a time.
    answers = {"TPU_ACCELERATOR_TYPE": topology.accelerator_type, "TPU_WORKER_HOSTNAMES": "localhost"}
    answers |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    for name, value in (answers | {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_ID": "0"}).items():
        os.environ.setdefault(name, value)
    settings: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.generation == "v4":
        settings["chip_config_name"] = "megachip_tccontrol"  # one device for both cores of a chip
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **settings).devices
    if len(found) != topology.chips * slices:
        raise RuntimeError(f"{topology.name}: {len(found)} devices for {topology.chips * slices} chips")
    return list(found)


def find_compiler() -> epath.Path | None:
    """Tells JAX where libtpu is: TPU_LIBRARY_PATH, else VENV/libtpu, else where pip put it (None).

    Raises:
      UserError: it is nowhere.
    """
    import importlib.util

    given = os.environ.get("TPU_LIBRARY_PATH")
    beside = epath.Path(sys.prefix) / "libtpu" / "libtpu" / "libtpu.so"
    if given and not epath.Path(given).exists():
        raise UserError(f"TPU_LIBRARY_PATH = {given!r}: there is no such file")
    if not given and beside.exists():
        os.environ["TPU_LIBRARY_PATH"] = str(beside)
        return beside
    if not given and importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "the compiler for TPUs is not installed; allowed: pip install libtpu, or TPU_LIBRARY_PATH=.../libtpu.so"
        )
    return epath.Path(given) if given else None


def main(argv: Sequence[str]) -> None:
    """Prints the facts of the named topology as key=value lines."""
    if len(argv) != 2:
        raise UserError(f"{len(argv) - 1} topologies given; needed is one name, such as v5e:16x16")
    topology = parse(argv[1])
    facts = {
        "generation": topology.generation,
        "grid": "x".join(map(str, topology.grid)),
        "chips": topology.chips,
        "hosts": topology.hosts,
        "chips_per_host": topology.chips_per_host,
        "accelerator_type": topology.accelerator_type,
        "gke_accelerator": topology.gke_accelerator,
    }
    for key, value in facts.items():
        tell(f"{key}={value}")


if __name__ == "__main__":
    sys.exit(cli.run(main, takes_words=True))
