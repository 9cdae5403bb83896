"""What model is trained: its weights, dtype, attention and adapters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from hpt.config.sections.section import LARGEST_COEFFICIENT, Dtype, Section


class LoraConfig(Section):
    """Low-rank adapters by peft; the model's own weights stay frozen."""

    rank: int = Field(32, ge=1, le=2**16)
    alpha: float | None = Field(
        None,
        gt=0,
        le=LARGEST_COEFFICIENT,
        description="the adapters' update is scaled by alpha / rank; null: 2 rank, a scale of 2",
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="all linear layers but the head, or names of modules"
    )

    @property
    def numerator(self) -> float:
        """What the adapters' update is multiplied by, before it is divided by the rank."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class ModelConfig(Section):
    path: str = Field(description="a Hugging Face folder or hub name")
    dtype: Dtype = Field(
        "float32", description="dtype of the weights; 16-bit weights have float32 masters in the optimizer"
    )
    config: dict[str, Any] | None = Field(
        None,
        description="fields of the model's config.json to change, e.g. {max_position_embeddings: 16384, rope_theta: "
        "40000}; they belong to model.path, and a layer that names another model drops them",
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model's folder")
    attention: Literal[
        "auto",
        "sdpa",
        "flash_attention_2",
        "kernels-community/flash-attn2",
        "kernels-community/flash-attn3",
        "flex_attention",
        "eager",
    ] = Field(
        "auto",
        description="auto: flash attention of the package flash-attn, else prebuilt by the package kernels "
        "(kernels-community/flash-attn2), else sdpa, with a mask for packed rows; flex_attention needs a GPU, but no "
        "such mask in memory",
    )
    gradient_checkpointing: bool | Literal["offload"] = Field(
        False, description="recompute activations in the backward pass; offload: and keep layer inputs in CPU memory"
    )
    liger: Literal["auto"] | bool = Field(
        "auto", description="Liger's norms, rotary embeddings and MLPs; auto: on a GPU where liger-kernel is installed"
    )
    lora: LoraConfig | None = Field(
        None, description="train low-rank adapters, e.g. {rank: 32}; true: with the defaults; null: train all weights"
    )
    quantization: Literal["nf4"] | None = Field(None, description="frozen weights in 4 bits (QLoRA); needs model.lora")

    @field_validator("lora", mode="before")
    @classmethod
    def _read_lora_as_a_switch(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value
