"""Pages read back, what strangers may have written in them, and recordings for them."""

import html.parser

import numpy as np
import soundfile

EVIL = "</script><script>alert(1)</script><img src=https://host.example/x onerror=alert(1)> \"' \u202e"


class Tags(html.parser.HTMLParser):
    """The elements of a page with their attributes, and which are open at its end."""

    EMPTY = ("meta", "input", "img")

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def speech(folder, name: str, *, rate: int, seconds: float = 0.5) -> str:
    time = np.arange(round(seconds * rate)) / rate
    path = folder / name
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time), rate)
    return str(path)
