"""Which questions a run sees, and how they become prompts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hpt.config.sections.section import Section


class ColumnsConfig(Section):
    """Names of the data's columns; dots reach into nested objects. Unset ones are found by known layouts."""

    id: str | None = None
    prompt: str | None = None
    answer: str | None = None
    demonstration: str | None = None
    grade: str | None = None


class DataConfig(Section):
    train: str = Field(
        description=".jsonl, .json, .csv or .parquet file, or a Hugging Face dataset NAME[:CONFIG]@SPLIT"
    )
    eval: str | None = Field(None, description="held-out questions, in the same forms")
    columns: ColumnsConfig = ColumnsConfig()
    max_prompt_tokens: int | None = Field(None, ge=1, description="longer prompts are dropped or refused, see too_long")
    max_demonstration_tokens: int | None = Field(None, ge=1, description="default: rollout.max_tokens")
    too_long: Literal["drop", "error"] = Field(
        "drop", description="nothing is truncated: long questions are dropped and counted, or an error"
    )


class PromptConfig(Section):
    style: Literal["chat", "plain"] = Field(
        "chat", description="chat: the tokenizer's chat template; plain: the text as it is"
    )
    system: str | None = Field(None, description="system message of a chat; null: the data's own")
    template: str = Field("{question}", description="text around the question; only {question} is replaced")

    @model_validator(mode="after")
    def _has_question(self) -> PromptConfig:
        if "{question}" not in self.template:
            raise ValueError(f"template must contain {{question}}, got {self.template!r}")
        return self
