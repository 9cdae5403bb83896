"""Encode texts as token ids: texts that begin a sequence, and texts that continue one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpt.data.tokenizer import model_name
from hpt.support.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "hpt-question"


class TextEncoder:
    """Encodes prompts and responses separately, so that no token crosses the boundary between them.

    A prompt begins with a BOS token, once, if the tokenizer adds one and `bos` is true. A response gets no BOS token,
    and not the space that SentencePiece-style tokenizers put before every text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, bos: bool = True) -> None:
        self.tokenizer = tokenizer
        self._adds_bos = bos and self._is_bos_added()
        self._newline_ids = self._find_newline_ids()

    def beginnings(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that begin a sequence; one without any token becomes an EOS token."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        encoded = self._encode(texts)
        if self._adds_bos:
            encoded = [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]
        return [ids or [eos] for ids in encoded]

    def continuations(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts that follow others."""
        if not self._newline_ids:
            return self._encode(texts)
        length = len(self._newline_ids)
        encoded = self._encode(["\n" + text for text in texts])
        for text, ids in zip(texts, encoded, strict=True):
            if ids[:length] != self._newline_ids:
                raise DataError(f"the tokenizer of {model_name(self.tokenizer)} merges a line break with {text[:20]!r}")
        return [ids[length:] for ids in encoded]

    def _is_bos_added(self) -> bool:
        bos = self.tokenizer.bos_token_id
        with_special = self._encode([_PROBE], special=True)[0]
        without = self._encode([_PROBE])[0]
        return bos is not None and with_special[:1] == [bos] and without[:1] != [bos]

    def _find_newline_ids(self) -> list[int]:
        """The tokens of a line break to encode before a continuation and remove again; [] if none is needed.

        A SentencePiece-style tokenizer puts a space before every text. With a line break first, the space comes before
        the line break and is removed with it.
        """
        newline, text, both = self._encode(["\n", _PROBE, "\n" + _PROBE])
        return [] if newline + text == both else newline

    def _encode(self, texts: list[str], *, special: bool = False) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"] if texts else []
