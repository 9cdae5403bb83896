"""The `demonstration` column of a dataset: its checks, and its tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from datasets import Dataset

# A chat template adds some tokens to the text.
TEMPLATE_TOKENS = 64


def check_number(name: str, value: object, allowed: str, minimum: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > minimum):
        raise ValueError(f"{name}: must be {allowed}; got {value!r}")
    return float(value)


def check_dataset(dataset: Any) -> None:
    """What can be seen before the model is loaded. A streamed dataset shows its column names at most."""
    if dataset is None:
        raise ValueError("train_dataset: must be a dataset with the columns 'prompt' and 'demonstration'; got None")
    columns = getattr(dataset, "column_names", None)
    if columns is not None:
        for name in ("prompt", "demonstration"):
            if name not in columns:
                raise ValueError(f"train_dataset: needs a column {name!r}; got the columns {', '.join(columns)}")
        for image in ("image", "images"):
            if image in columns:
                raise ValueError(f"train_dataset: HPTTrainer trains on text alone; got the column {image!r}")
    if isinstance(dataset, Dataset):
        for row, demonstration in enumerate(dataset["demonstration"]):
            check_demonstration(demonstration, f"row {row} of train_dataset")


def check_demonstration(demonstration: object, where: str) -> None:
    """Raise ValueError unless it is a text, or one message of the assistant, that is not empty."""
    if isinstance(demonstration, str):
        text = demonstration
    elif isinstance(demonstration, list) and len(demonstration) == 1 and _is_answer(demonstration[0]):
        text = demonstration[0]["content"]
    else:
        raise ValueError(
            "demonstration: must be a string, or a list of one message whose role is 'assistant' and whose content is "
            f"a string; {where} has {_short(demonstration)}"
        )
    if not text.strip():
        raise ValueError(f"demonstration: must not be empty; {where} has {_short(demonstration)}")


def check_lengths(dataset: Dataset, tokenize: Any, longest: int) -> None:
    """Raise ValueError if demonstrations of the dataset have more than `longest` tokens, their EOS included.

    tokenize: as `DemonstrationTokens.__call__`. A token is at least one byte of text, so short texts are not tokenized.
    """
    too_long: list[tuple[int, int]] = []
    for row, demonstration in enumerate(dataset["demonstration"]):
        text = demonstration if isinstance(demonstration, str) else demonstration[0]["content"]
        if len(text.encode()) + TEMPLATE_TOKENS > longest:
            tokens = len(tokenize(dataset[row]["prompt"], demonstration))
            if tokens > longest:
                too_long.append((row, tokens))
    if too_long:
        row, tokens = too_long[0]
        raise ValueError(
            f"demonstration: may have max_completion_length={longest} tokens, its EOS included; row {row} of "
            f"train_dataset has {tokens}, and {len(too_long)} of {len(dataset)} rows are longer. Raise "
            "max_completion_length, or filter them out of the dataset"
        )


class DemonstrationTokens:
    """Tokens of a demonstration as they follow the tokens of its prompt, with an EOS at the end.

    tokenizer: of the model. eos_token_ids: those that end a completion; where a demonstration has none, the tokenizer's
    is added. template: further arguments of `apply_chat_template`.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: Sequence[int], **template: Any):
        self.tokenizer = tokenizer
        self.eos_token_ids = list(eos_token_ids)
        self.template = template

    def __call__(self, prompt: Any, demonstration: Any) -> list[int]:
        """prompt: a string or messages. demonstration: a string, or a list of one message of the assistant.

        After a prompt of messages the demonstration is what the chat template makes of it. The prompt's tokens stay as
        they are, also where the tokenizer would merge its end with the demonstration's beginning.
        """
        is_plain = isinstance(prompt, str)
        if is_plain and not isinstance(demonstration, str):
            raise ValueError(
                f"demonstration: must be a string where the prompt is one; got {_short(demonstration)} after "
                f"{_short(prompt)}"
            )
        before, answer = (prompt, demonstration) if is_plain else self._rendered(prompt, demonstration)
        tokens = self._encode(before + answer, add_special_tokens=is_plain)
        prompt_tokens = self._encode(before, add_special_tokens=is_plain)
        if tokens[: len(prompt_tokens)] == prompt_tokens:
            tokens = tokens[len(prompt_tokens) :]
        else:
            tokens = self._encode(answer, add_special_tokens=False)
        end = next((place for place, token in enumerate(tokens) if token in self.eos_token_ids), None)
        if end is None:
            return [*tokens, self.tokenizer.eos_token_id]
        if self.tokenizer.decode(tokens[end + 1 :], skip_special_tokens=True).strip():
            raise ValueError(
                f"demonstration: must not go on after a token that ends a completion, "
                f"{self.tokenizer.decode(tokens[end])!r}; got {_short(demonstration)}"
            )
        return tokens[: end + 1]

    def _rendered(self, prompt: list[dict[str, Any]], demonstration: Any) -> tuple[str, str]:
        """The texts of prompt and demonstration by the chat template."""
        if isinstance(demonstration, str):
            demonstration = [{"role": "assistant", "content": demonstration}]
        before = self._render(prompt, add_generation_prompt=True)
        both = self._render([*prompt, *demonstration], add_generation_prompt=False)
        if not both.startswith(before):
            raise ValueError(
                "demonstration: the chat template changes the prompt once an answer follows, so a demonstration would "
                "not follow the prompt that rollouts follow. Render both yourself, into strings; got the prompt "
                f"{_short(before)} and then {_short(both)}"
            )
        return before, both[len(before) :]

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False, **self.template
        )
        return text

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return list(self.tokenizer(text=text, add_special_tokens=add_special_tokens)["input_ids"])


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant" and isinstance(message.get("content"), str)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
