"""A whole conversation as tokens, with the assistant's turns marked: what SFT trains on with `data.loss_on: all`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conversation:
    """Parts of a conversation in turn: what the assistant reads, and what it says.

    parts: token ids of each part, and whether they are trained; the first part is not.
    """

    parts: list[tuple[list[int], bool]]

    @property
    def tokens(self) -> list[int]:
        return [token for ids, _ in self.parts for token in ids]

    @property
    def prompt_length(self) -> int:
        """Tokens before the first trained one."""
        return len(self.parts[0][0])

    @property
    def mask(self) -> list[bool]:
        """Of each token after the first `prompt_length`: whether it is trained."""
        return [trained for ids, trained in self.parts[1:] for _ in ids]
