"""What a run tells of its mixture: before the first step, beside each checkpoint, and at the end."""

from collections.abc import Sequence

import jax

from hra_jax.console import listed, percent, stdout, table, tell
from hra_jax.data import drawn
from hra_jax.data.batching import BatchSettings, bucket_rows
from hra_jax.run.place import Run
from hra_jax.run.workdirs import DATA_REPORT
from hra_jax.training.metrics import MetricWriter

_MOST_ROWS = 20  # of the table
_REMEDIES = (
    "more steps, higher rates, data.groups with a higher data.temperature, or data.draw = 'tasks' would draw them"
)


def foresee(run: Run, batch: BatchSettings) -> None:
    """Prints what the steps of the run are going to draw, and the tasks that will hardly be among it."""
    layout = run.layout
    if not layout.parts or jax.process_index() != 0:
        return
    rows = bucket_rows(batch.edges, batch_seconds=batch.seconds, multiple=batch.multiple)
    total = drawn.references_in(run.settings.steps, layout.table, layout.parts, buckets=batch.edges, rows=rows)
    counts = [int(share * total) for share in drawn.asked(layout.parts).tolist()]
    if len(layout.parts) > 1:
        found = sorted(drawn.shares(layout.parts, counts), key=lambda share: share.asked)
        tell(f"  mixture of {len(found)}: from {_expected(found[0])} to {_expected(found[-1])}")
    never = drawn.undrawn_tasks(layout.table, layout.parts, counts, seed=run.settings.seed)
    if never:
        tell(
            f"  {run.settings.steps:,} steps draw about {total:,.0f} of {len(layout.table):,} utterances; "
            f"{len(never):,} of {len(layout.table.learning):,} tasks will hardly be among them: {listed(never)}; "
            f"{_REMEDIES}"
        )


def _expected(share: drawn.Share) -> str:
    through = f"{share.drawn / share.utterances:,.3g} times through"
    return f"{percent(share.asked)} {share.name} ({share.utterances:,} utterances, {through})"


def note(run: Run, counts: Sequence[int], writer: MetricWriter, step: int) -> None:
    """Writes what has been asked and drawn into the metrics, and puts it into the data report.

    Args:
      run: the run.
      counts: references that have been drawn of each part of the mixture; nothing is noted of one part alone.
      writer: of the metrics.
      step: steps done.
    """
    if len(counts) > 1:
        found = drawn.shares(run.layout.parts, counts)
        writer.write(step, drawn.scalars(found))
        run.report.mixture = drawn.to_json(found, ())


def undrawn(run: Run, counts: Sequence[int]) -> list[str]:
    """The tasks that were never drawn, which the data report then names; `counts` as for `note`."""
    layout = run.layout
    if not counts:
        return []
    never = drawn.undrawn_tasks(layout.table, layout.parts, counts, seed=run.settings.seed)
    if never or len(counts) > 1:
        run.report.mixture = drawn.to_json(drawn.shares(layout.parts, counts), never)
    return never


def tell_drawn(run: Run, counts: Sequence[int], never: Sequence[str]) -> None:
    """Prints what was drawn beside what was asked, and the tasks that were never drawn; arguments as above."""
    if len(counts) > 1:
        _print_table(drawn.shares(run.layout.parts, counts))
    if never:
        tell(f"{len(never)} of {len(run.layout.table.learning)} tasks were never drawn: {listed(never)}; {_REMEDIES}")


def _print_table(found: Sequence[drawn.Share]) -> None:
    total = max(sum(share.drawn for share in found), 1)
    ordered = sorted(found, key=lambda share: -share.drawn / share.utterances)
    halves = [ordered]
    if len(ordered) > _MOST_ROWS:
        halves = [ordered[: _MOST_ROWS // 2], ordered[-(_MOST_ROWS // 2) :]]
    rows = [
        [
            (
                share.name,
                f"{share.utterances:,}",
                percent(share.asked),
                percent(share.drawn / total),
                f"{share.drawn / share.utterances:,.3g}",
            )
            for share in half
        ]
        for half in halves
    ]
    header = ("drawn of", "utterances", "asked", "drawn", "times through")
    stdout().print(table(header, *rows))
    if len(halves) > 1:
        tell(f"{len(ordered) - _MOST_ROWS} more lie between them; {DATA_REPORT} has them all")
