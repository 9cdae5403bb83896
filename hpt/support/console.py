"""What is printed: text that a model, a data file or a server wrote neither controls the terminal nor is markup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hpt.support.streams import discard

# Unicode has pictures of the first 32 (␛ for ESC) and of DEL. The others are 8-bit controls and marks that change the
# direction of text.
_PICTURES = {code: chr(0x2400 + code) for code in range(32)} | {0x7F: "␡"}
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_OTHERS = {code: f"\\u{code:04x}" for code in (*range(0x80, 0xA0), *_DIRECTIONS)}
_SHOWN = {code: shown for code, shown in (_PICTURES | _OTHERS).items() if chr(code) not in "\n\t"}


def visible(text: str) -> str:
    """`text` with its control characters as visible ones, line breaks and tabs excepted."""
    return text.translate(_SHOWN)


class PlainConsole(Console):
    """A console of rich that shows control characters, and reads no markup, emoji codes or numbers to highlight."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def on_broken_pipe(self) -> None:
        """The reader has seen enough, as `head` has: the rest is dropped. Console would end the process."""
        discard(self.file)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
