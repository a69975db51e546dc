"""Steps that were skipped, since their loss or a gradient was not finite: counted, their utterances named."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from hra_jax.data.report import DataReport
from hra_jax.errors import UserError
from hra_jax.training.step import SKIPPED

KIND = "not_finite"  # of the data report
_STORED, _STORED_GOOD = "skipped_steps", "last_good_step"  # in the data position of a checkpoint


class SkippedSteps:
    """Which steps of a run have been skipped.

    The device decides in the step itself. What it says is fetched only when `look` is called, so no step waits for it.

    Attributes:
      in_row: steps that were skipped since the last one that was not, as of the last `look`.
      total: steps that were skipped since the run began, those before a resume among them, as of the last `look`.
    """

    def __init__(
        self,
        *,
        most: int,
        report: DataReport,
        name_of: Callable[[int], str],
        start: int = 0,
        position: Mapping[str, Any] | None = None,
    ):
        """Begins with a step that was not skipped.

        Args:
          most: `optimizer.max_skipped_steps`.
          report: where utterances are named.
          name_of: gives the name of an utterance by its number in the table.
          start: the step that the run goes on from.
          position: the data position that the run goes on from, with what `onto` has put there; None where it begins.
        """
        self._most, self._report, self._name_of = most, report, name_of
        self._waiting: list[tuple[int, jax.Array, np.ndarray]] = []
        self.in_row = 0
        # Checkpoints of earlier versions have no count.
        stored = (position or {}).get(_STORED, 0)
        self.total = stored if isinstance(stored, int) else 0
        good = (position or {}).get(_STORED_GOOD, start)
        self._good = good if isinstance(good, int) else start  # the last step that was not skipped

    def stepped(self, step: int, metrics: dict[str, jax.Array], utterances: np.ndarray) -> None:
        """Notes a step: its metrics, which lose the one of this class, and the numbers of this process's utterances."""
        self._waiting.append((step, metrics.pop(SKIPPED), utterances))

    def look(self, tell: Callable[[str], object]) -> None:
        """Waits for the steps that have been noted since it was last called, and tells of those that were skipped.

        Args:
          tell: takes a line for each.

        Raises:
          UserError: a step was skipped and the report is strict.
        """
        waiting, self._waiting = self._waiting, []
        flags = jax.device_get([flag for _, flag, _ in waiting])
        for (step, _, utterances), flag in zip(waiting, flags, strict=True):
            if not flag:
                self._good, self.in_row = step, 0
                continue
            self.in_row += 1
            self.total += 1
            tell(f"step {step} is skipped: its loss or a gradient is not finite")
            for number in utterances[utterances >= 0].tolist():
                detail = f"in the batch of step {step}, which was skipped: its loss or a gradient was not finite"
                self._report.add(KIND, self._name_of(number), detail)

    def onto(self, position: Mapping[str, Any]) -> dict[str, Any]:
        """A data position with the number of skipped steps and the last step that was not skipped, for a checkpoint."""
        return {**position, _STORED: self.total, _STORED_GOOD: self._good}

    @property
    def too_many(self) -> bool:
        """Whether the run is to end; the same in every process."""
        return self.in_row >= self._most

    def error(self, step: int, *, report: str) -> UserError:
        """What to tell at the end of such a run, whose checkpoint `step` is saved; `report` is the report's file."""
        return UserError(
            f"step {step}: the loss or a gradient of the last {self.in_row} steps was not finite "
            f"(optimizer.max_skipped_steps = {self._most}); checkpoint {step} holds the weights of step {self._good}; "
            f"check the data: {report} names the utterances; the same command may go on with another "
            "optimizer.max_skipped_steps; another optimizer.learning_rate needs a new work directory, where "
            "adapter.start may be what `tasks export-checkpoint` writes of this one"
        )
