"""Which questions a run sees, and how they become prompts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from hpt.config.sections.section import Section


class ColumnsConfig(Section):
    """Names of the data's columns, or dotted paths: messages.0.content. Unset ones are found by known layouts."""

    id: str | None = None
    prompt: str | None = None
    answer: str | None = None
    demonstration: str | None = None
    messages: str | None = Field(None, description="whole conversations, in place of prompt and demonstration")
    tools: str | None = Field(None, description="tools that the chat template describes to the model")
    chat_template_kwargs: str | None = Field(None, description="a record's own prompt.chat_template_kwargs")
    grade: str | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> ColumnsConfig:
        if self.messages and (self.prompt or self.demonstration):
            raise ValueError("messages holds prompt and demonstration: name either messages or those two")
        return self


class SourceConfig(Section):
    """One source of questions, where a name alone does not say it."""

    path: str = Field(description="a file, a dataset folder or the name of a dataset of the hub")
    config: str | None = Field(None, description="a hub dataset's configuration")
    split: str | None = Field(None, description="a dataset's split")
    weight: float = Field(1.0, gt=0, description="share of the questions trained on, relative to the other sources")
    columns: ColumnsConfig | None = Field(None, description="of this source; default: data.columns")

    @model_validator(mode="after")
    def _has_a_split_if_a_dataset(self) -> SourceConfig:
        if self.path.endswith((".jsonl", ".json", ".csv", ".parquet")) and (self.config or self.split):
            raise ValueError(f"config and split belong to a dataset; {self.path} is a file")
        return self

    @property
    def name(self) -> str:
        """As a recipe writes it in one word: NAME[:CONFIG][@SPLIT]."""
        config = f":{self.config}" if self.config else ""
        return f"{self.path}{config}" + (f"@{self.split}" if self.split else "")


def _form(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<sources>"


# The tags name the two forms within pydantic; error messages leave out what stands in angle brackets.
Sources = Annotated[
    Annotated[str, Tag("<name>")] | Annotated[list[SourceConfig], Tag("<sources>")], Discriminator(_form)
]
"""A name, or a list of sources."""


class DataConfig(Section):
    train: Sources = Field(
        description=".jsonl, .json, .csv or .parquet file, or a Hugging Face dataset NAME[:CONFIG]@SPLIT; or "
        "{path, config, split}; or a list of {path, weight, columns, ...} that are mixed"
    )
    eval: Sources | None = Field(None, description="held-out questions, in the same forms, without weights")
    columns: ColumnsConfig = ColumnsConfig()
    loss_on: Literal["last", "all"] = Field(
        "last", description="assistant turns of a conversation that SFT trains on: the last one, or all"
    )
    max_prompt_tokens: int | None = Field(None, ge=1, description="longer prompts are dropped or refused, see too_long")
    max_demonstration_tokens: int | None = Field(None, ge=1, description="default: rollout.max_tokens")
    too_long: Literal["drop", "error"] = Field(
        "drop", description="nothing is truncated: long questions are dropped and counted, or an error"
    )
    missing_demonstrations: Literal["error", "drop", "rollouts"] = Field(
        "error",
        description="questions without a demonstration, where the method trains on demonstrations: an error; or they "
        "are dropped; or RL trains on their rollouts alone (a method without rollouts drops them)",
    )
    wrong_demonstrations: Literal["keep", "drop", "rollouts", "error"] = Field(
        "keep",
        description="demonstrations whose final answer the verifier refuses. keep: counted on a sample; else all are "
        "checked. drop: their questions are dropped; rollouts: the demonstrations are, and RL trains on the rollouts "
        "of their questions (a method without rollouts drops them); error",
    )

    @field_validator("train", "eval", mode="before")
    @classmethod
    def _list_a_single_source(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("train", "eval")
    @classmethod
    def _has_a_source(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("should have at least one source")
        return value

    @property
    def train_sources(self) -> list[SourceConfig]:
        return _sources(self.train)

    @property
    def eval_sources(self) -> list[SourceConfig]:
        return _sources(self.eval) if self.eval else []


def _sources(value: str | list[SourceConfig]) -> list[SourceConfig]:
    return [SourceConfig(path=value)] if isinstance(value, str) else value


OWN_TEMPLATE_KWARGS = (
    "conversation",
    "messages",
    "tools",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
)
"""What hpt itself hands to a chat template."""


class PromptConfig(Section):
    style: Literal["chat", "plain"] = Field(
        "chat", description="chat: the tokenizer's chat template; plain: the text as it is"
    )
    system: str | None = Field(None, description="system message of a chat; null: the data's own")
    template: str = Field("{question}", description="text around the question; only {question} is replaced")
    bos: bool = Field(True, description="a prompt begins with the BOS token, if the tokenizer adds one")
    end: Literal["turn", "eos"] = Field(
        "turn",
        description="the token that ends a response. turn: what the chat template puts after an assistant's message, "
        "in style plain the tokenizer's EOS; eos: the tokenizer's EOS in both",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="handed to the chat template, e.g. {enable_thinking: false}; a record's own come on top"
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _leaves_our_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(value.keys() & set(OWN_TEMPLATE_KWARGS)):
            raise ValueError(f"hpt itself sets {', '.join(own)}")
        return value

    @model_validator(mode="after")
    def _has_question(self) -> PromptConfig:
        if "{question}" not in self.template:
            raise ValueError(f"template must contain {{question}}, got {self.template!r}")
        return self
