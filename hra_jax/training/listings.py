"""The checksums of the files of a checkpoint, written down while training goes on."""

import os
import sys
import threading

from etils import epath

from hra_jax.console import tell
from hra_jax.storage.checksums import write_listing
from hra_jax.training.stored_checkpoint import reason

_LOOK_SECONDS = 0.1  # between two looks whether the checkpoint is complete


class Listing:
    """Waits in a thread of its own until a checkpoint appears under its name, and writes its `files.json`.

    An end of the process does not wait for it.
    """

    def __init__(self, folder: epath.Path):
        """Starts the thread; a checkpoint in a bucket gets no listing, as it would have to come back from there."""
        self._folder, self._saved = folder, threading.Event()
        self._trouble: OSError | None = None
        self._thread = threading.Thread(target=self._write, name="files.json", daemon=True)
        if "://" not in os.fspath(folder):
            self._thread.start()

    def finish(self) -> None:
        """Waits until it is written, when the save is over, well or not; tells what went wrong with the listing."""
        self._saved.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._trouble is not None:
            tell(f"{self._folder}: no checksums of files ({reason(self._trouble)})", to=sys.stderr)

    def _write(self) -> None:
        while not self._folder.exists() and not self._saved.wait(_LOOK_SECONDS):
            pass
        try:
            if self._folder.exists():
                write_listing(self._folder)
        except OSError as error:
            self._trouble = error
