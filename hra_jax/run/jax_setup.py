"""How a command starts JAX: where its compiled programs are cached; and what they run on."""

import os
import platform
import sys

from etils import epath

from hra_jax.console import tell
from hra_jax.storage.files import make_folder


def setup_jax(compile_cache: str | None = None) -> str | None:
    """Turns JAX's persistent compile cache on; to be called before anything is compiled.

    Args:
      compile_cache: folder (`gs://` too). None: the environment's JAX_COMPILATION_CACHE_DIR, else ~/.cache/hra_jax/jax.

    Returns:
      The folder in use, or None where it cannot be written: then every process compiles its programs again.
    """
    import jax  # late, so that commands which only read files start fast

    folder = epath.Path(
        compile_cache or os.environ.get("JAX_COMPILATION_CACHE_DIR") or epath.Path("~/.cache/hra_jax/jax").expanduser()
    )
    try:
        make_folder(folder)
    except OSError as error:
        tell(f"no compile cache: {error}", to=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return str(folder)


def hardware() -> dict[str, str | int]:
    """What times were measured on: the kind and number of devices, processes, and this host's processor and cores."""
    import jax

    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "machine": platform.machine(),
        "cores": os.cpu_count() or 1,
    }
