"""What a run exports at its end."""

import dataclasses

from hra_jax.config.settings import check_settings, one_of, setting
from hra_jax.models.dtypes import STORAGE_DTYPES

STEPS = ("last", "best", "best_per_task")


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """The keys `export.*`."""

    step: str = setting(
        "last",
        one_of(lambda: STEPS),
        "checkpoint that is exported: last; best (on eval.select_suite); best_per_task (each task at its own best; "
        "where nothing that tasks share trains)",
    )
    dtype: str = setting(
        "float32", one_of(lambda: STORAGE_DTYPES), "of an exported backbone (methods full and pretrain)"
    )

    def __post_init__(self) -> None:
        check_settings(self, "export")
