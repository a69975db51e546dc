"""What all systems that were run on a suite have come to: one report, one page, and the differences as numbers."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from hra_jax.compare import compare
from hra_jax.errors import UserError
from hra_jax.evaluation import side_by_side, systems_page
from hra_jax.evaluation.suites import Suite
from hra_jax.run.workdirs import check_links
from hra_jax.storage.files import write_file
from hra_jax.storage.json_files import json_text

REPORT, PAGE = "report.md", "report.html"  # of all systems, in R/<suite>
COMPARED = "compared.json"


def report_all(
    suite: Suite,
    results: Mapping[str, Any],
    seen: Mapping[str, Mapping[str, Any]],
    output: epath.Path,
    *,
    samples: int,
    command: str,
) -> None:
    """Writes and prints how the systems of a suite compare; only process 0 calls it.

    Args:
      suite: the suite.
      results: results.json by system.
      seen: `matrix.matrix_of` by system, where there are any.
      output: R; the files are in R/<suite>.
      samples: resamples of the intervals.
      command: what repeats it, for the page.
    """
    pairs: list[side_by_side.Pair] = []
    names = list(results)
    for at, first in enumerate(names):
        for second in names[at + 1 :]:
            if any("few_shot" in results[name] for name in (first, second)) and not _same_tasks(results, first, second):
                pairs.append((first, second, None, "they hold out different tasks"))
                continue
            try:
                found = compare([output / suite.name / name for name in (first, second)], samples=samples, common=True)
                # Where the folder lies has no part in it.
                pairs.append((first, second, found["comparisons"][0] | {"path": f"{suite.name}/{second}"}, ""))
            except UserError as error:
                pairs.append((first, second, None, str(error)))
    compared = [{"a": a, "b": b, "differences": found, "error": why or None} for a, b, found, why in pairs]
    check_links(output, [f"{suite.name}/{name}" for name in (REPORT, PAGE, COMPARED)])
    write_file(output / suite.name / COMPARED, json_text(compared))
    write_file(output / suite.name / REPORT, side_by_side.markdown(suite.name, results, pairs))
    missing = side_by_side.notes(results, pairs)
    page = systems_page.page_of(suite.name, results, pairs, notes=missing, matrices=seen, command=command)
    write_file(output / suite.name / PAGE, page)
    if len(results) > 1:
        side_by_side.print_tables(suite.name, results, pairs)


def _same_tasks(results: Mapping[str, Any], first: str, second: str) -> bool:
    return results[first]["tasks"].keys() == results[second]["tasks"].keys()
