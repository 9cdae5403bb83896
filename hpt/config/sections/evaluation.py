"""How `hpt eval` evaluates a model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from hpt.config.sections.data import ColumnsConfig
from hpt.config.sections.section import Dtype, ResponseLength, Section


class EvaluationSettings(Section):
    """The options of `hpt eval`, and the keywords of `hpt.evaluate`."""

    n: int | None = Field(None, ge=1, description="responses per question; default: as `hpt eval --help` says")
    k: list[Annotated[int, Field(ge=1)]] = Field([], description="the k of pass@k; default: 1, 2, 4, ... up to n")
    temperature: float = Field(0.6, ge=0, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: ResponseLength | None = Field(None, description="longest response; default: 1024, for benchmarks 8192")
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="what samples the responses; auto: vLLM where it is installed, on a GPU, else transformers"
    )
    tensor_parallel: int = Field(1, ge=1, description="vLLM: GPUs that share one copy of the model")
    data_parallel: int = Field(1, ge=1, description="vLLM: copies of the model, which share the questions")
    memory_share: float = Field(0.9, gt=0, lt=1, description="vLLM: share of each GPU's memory that it takes")
    batch_size: int = Field(64, ge=1, description="transformers: responses generated at once")
    limit: int | None = Field(None, ge=1, description="only the first questions of each source")
    seed: int = Field(0, ge=0, description="for sampling and the order of GPQA's choices")
    style: Literal["chat", "plain"] | None = Field(None, description="prompt style; default: the run's")
    system: str | None = Field(None, description="system message of a chat prompt")
    template: str | None = Field(None, description="text around the question, with {question} in it")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="handed to the chat template; default: the run's"
    )
    verifier: str | None = Field(None, description="math, boxed, choice, or module:function")
    dtype: Literal["auto"] | Dtype = Field(
        "auto", description="auto: the model's own on a GPU, and float32 on a CPU, which is slow at 16 bits"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    data_dir: str | None = Field(None, description="folder of local benchmark files; default: $HPT_DATA_DIR")
    columns: ColumnsConfig = ColumnsConfig()
