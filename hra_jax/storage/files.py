"""Files written whole or not at all."""

import json

from etils import epath


def write_file(path: epath.PathLike, content: bytes | str) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part; makes its folder."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp"
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def json_text(content: object) -> str:
    """JSON with sorted keys, for people and for byte comparison; a NaN or infinity is a ValueError."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
