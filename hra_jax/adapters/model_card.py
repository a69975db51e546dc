"""The model card of an exported adapter, and how rates and names are written for people."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from etils import epath

from hra_jax.adapters import task_records
from hra_jax.adapters.methods import METHODS
from hra_jax.console import bounds, listed, markdown_cell, markdown_code, percent, printable
from hra_jax.tasks.names import AUTO_TASK, BASE_TASK

_MOST_LISTED = 50  # task names


def model_card(
    config: Mapping[str, Any],
    names: list[str],
    results: Mapping[str, Any] | None,
    records: task_records.Records | None = None,
) -> str:
    """The README.md of an adapter folder.

    Args:
      config: the content of adapter_config.json.
      names: the tasks in the order of their rows.
      results: what `hra_jax.evaluation.results.evaluate_results` returned, or None.
      records: what else is held for each task.

    Returns:
      Markdown.
    """
    account, backbone = config["accounting"], _location(config["backbone"]["name"])
    shared, per_task, whole = (account[f] for f in ("shared_parameters", "parameters_per_task", "backbone_parameters"))
    total = shared + len(names) * per_task
    method = config["method"]["name"]
    listing = listed(names, most=_MOST_LISTED, show=markdown_cell)
    where = " (all of them: tasks.json)" if len(names) > _MOST_LISTED else ""
    example = names[0] if names else BASE_TASK
    shell_backbone, shell_task = (shlex.quote(printable(text)) for text in (backbone, example))
    lines = [
        f"# Adapter {markdown_code(method)} for {len(names)} tasks on {markdown_code(backbone)}",
        "",
        f"Small trained parts for a frozen speech encoder, made with hra_jax: {METHODS[method].description}.",
        "",
        f"- Backbone: {markdown_code(backbone)}, fingerprint {markdown_code(config['backbone']['fingerprint'])}",
        f"- Method: {markdown_code(json.dumps(config['method'], sort_keys=True))}",
        f"- Tasks: {listing}{where}",
        f"- Parameters: {shared:,} shared + {len(names):,} tasks x {per_task:,} = {total:,}, {total / whole:.2%} of "
        f"the backbone's {whole:,}",
        "",
        *(_error_rate_lines(results) if results else ()),
        *_hash_lines(records or {}),
        *_language_model_lines(records or {}),
        *_voice_lines(records or {}),
        "## Use",
        "",
        f"Give the backbone's own folder in place of {markdown_code(backbone)} where it is not a built-in one.",
        "",
        "```python",
        "import hra_jax",
        "import soundfile",
        "",
        f"backbone = hra_jax.load_backbone({backbone!r})",
        'model = hra_jax.load_adapter("ADAPTER_FOLDER", backbone)',
        'waveform, sample_rate = soundfile.read("a.wav", dtype="float32")',
        f"print(model.transcribe([waveform], sample_rate=sample_rate, tasks=[{example!r}]))",
        "```",
        "",
        "```sh",
        f"python -m hra_jax.transcribe --adapter ADAPTER_FOLDER --backbone {shell_backbone} --task {shell_task} a.wav",
        "```",
        "",
    ]
    return "\n".join(lines)


def _location(backbone: str) -> str:
    """What a built-in backbone is loaded by; the name of another one."""
    folder = epath.Path(__file__).parent.parent / "builtin" / backbone
    return f"builtin:{backbone}" if (folder / "backbone.json").exists() else backbone


def _hash_lines(records: task_records.Records) -> list[str]:
    """The part of a model card that says what is told of the training data; nothing where nothing is."""
    count = len(task_records.all_hashes(records))
    if not count:
        return []
    return [
        "## Training data",
        "",
        f"`{task_records.RECORDS_FILE}` holds 64 bits of a hash of each of {count:,} utterances that were trained on, "
        "so that evaluation refuses test data that has one of them. No audio or text can be had from it, but whoever "
        "has a recording can tell that it was used; `export.hashes=False` leaves it out.",
        "",
    ]


def _language_model_lines(records: task_records.Records) -> list[str]:
    """The part of a model card that says which language models lie in the folder; nothing where none do."""
    models = records.get(task_records.LM, {})
    if not models:
        return []
    whose = (
        "all tasks" if task_records.SHARED in models else listed(sorted(models), most=_MOST_LISTED, show=markdown_cell)
    )
    return [
        "## Language models",
        "",
        f"`{task_records.RECORDS_FILE}` holds a language model for {whose}, which `decode.lm='adapter'` decodes with. "
        "Much of the texts that it was made from can be had from it.",
        "",
    ]


def _voice_lines(records: task_records.Records) -> list[str]:
    """The part of a model card that says what is told of voices; nothing where nothing is."""
    count = len(records.get(task_records.CENTROID, {}))
    if not count:
        return []
    return [
        "## Voices",
        "",
        f"`{task_records.RECORDS_FILE}` holds how {count:,} of the tasks sound, a mean over recordings of each, by "
        f"which {AUTO_TASK} finds that of a recording. No audio or text can be had from it, but whoever has another "
        "recording can tell how much it sounds like one of them; `export.voices=False` leaves it out.",
        "",
    ]


def _error_rate_lines(results: Mapping[str, Any]) -> list[str]:
    """The part of a model card that holds error rates."""
    lines = [
        f"## Error rates on the suite {markdown_code(results['suite'])}",
        "",
        "| task | adapter | WER without adapter | WER | 95% interval | CER | words |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, task in results["tasks"].items():
        cells = (
            markdown_cell(name),
            markdown_cell(task["adapter_task"]),
            percent(task["base_wer"]),
            percent(task["wer"]),
            bounds(task),
            percent(task["cer"]),
            f"{task['words']:,}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    means = f"{percent(results['wer_macro'])} (without adapter {percent(results['base_wer_macro'])})"
    normalizer = f"Texts were compared after the normalizer {markdown_code(results['normalizer'])}."
    return [*lines, "", f"Mean over tasks: {means}. {normalizer}", ""]
