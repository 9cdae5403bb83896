"""How rollouts are sampled and verified."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from hpt.config.sections.section import LARGEST_WAIT, FunctionReference, ResponseLength, Section


def _is_server_url(value: str) -> str:
    """`value`, if it is a URL that requests can be sent to; else ValueError."""
    try:
        parts = urlsplit(value)
        usable = bool(parts.hostname) and parts.port != 0  # ValueError for what is no number, or above 65535
    except ValueError:
        usable = False
    if not usable or not re.fullmatch(r"https?://[^?#\s]+", value):
        raise ValueError("must be http://HOST:PORT (or https://), with a port from 1 to 65535")
    return value


class VllmConfig(Section):
    """Read by `rollout.engine: vllm` only."""

    url: Annotated[str, AfterValidator(_is_server_url)] | None = Field(
        None, description="URL of a server (hpt serve RECIPE); null: inside the trainer's process"
    )
    timeout: float = Field(
        300.0, gt=0, le=LARGEST_WAIT, description="seconds without progress after which a server counts as hung"
    )
    wait: float = Field(
        0.0,
        ge=0,
        le=LARGEST_WAIT,
        description="seconds that a run waits for a server that is not there yet, died or hangs to be started (again); "
        "0: the run stops, with a checkpoint",
    )
    weight_transfer: Literal["auto", "nccl", "ipc", "gloo"] = Field(
        "auto",
        description="how a server gets the weights: nccl between GPUs, ipc where trainer and server share one, gloo "
        "through CPU memory; auto: nccl, on a CPU gloo",
    )
    tensor_parallel: int = Field(
        1,
        ge=1,
        description="GPUs that share one copy of the model; inside the trainer each is a rank of the launcher",
    )
    memory_share: float = Field(0.4, gt=0, lt=1, description="share of a GPU's memory for weights and KV cache")
    sleep_level: Literal[0, 1, 2] = Field(
        2,
        description="while the trainer trains: 0 stays in GPU memory, 1 moves the weights to CPU memory, 2 drops them",
    )
    adapters: Literal["merged", "lora"] = Field("merged", description="how the adapters of model.lora reach the engine")
    quantization: Literal["nf4"] | None = Field(
        None,
        description="vLLM's own copy of the frozen weights in 4 bits, as model.quantization has the trainer's; needs "
        "adapters: lora",
    )
    options: dict[str, Any] = Field({}, description="further arguments of vllm.LLM")


class RolloutConfig(Section):
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmConfig = VllmConfig()
    n: int = Field(8, ge=1, le=2**16, description="rollouts per question")
    temperature: float = Field(1.0, ge=0.01, description="of sampling, and of the log-probabilities that are trained")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus sampling: probability mass of the likeliest tokens that are kept; 1: all tokens",
    )
    max_tokens: ResponseLength = Field(1024, description="most tokens of a rollout, stop token included")
    batch_size: int = Field(
        64, ge=1, le=2**20, description="sequences generated at once by transformers; vLLM chooses for itself"
    )
    batching: Literal["fixed", "continuous"] = Field(
        "fixed",
        description="transformers: fixed computes a batch until its longest response ends; continuous starts the next "
        "response where one ends. `python -m bench generate` measures both",
    )
    probe: int | None = Field(
        None,
        ge=2,
        description="sample so many rollouts of a question first, and all n only while the gate's decision is open; RL "
        "then trains on these first ones; null: always n",
    )
    dynamic_rounds: int = Field(
        1,
        ge=1,
        description="dynamic sampling (DAPO): up to this many batches of questions per step, until batch.questions of "
        "them have rollouts of different scores; only those are trained on. 1: off",
    )


class VerifyConfig(Section):
    kind: Literal["math", "choice"] = Field(
        "math", description="math: compared by math-verify; choice: the letter of a multiple-choice answer"
    )
    function: FunctionReference | None = Field(
        None, description="(response, answer) -> score, instead of a built-in verifier"
    )
    workers: int = Field(2, ge=1, le=1024, description="processes that verify at once")
    timeout: float = Field(5.0, gt=0, le=LARGEST_WAIT, description="seconds per answer")
    memory_mb: int = Field(1024, ge=256, le=2**30, description="MiB per worker, beyond its libraries")
    boxed: bool = Field(False, description="math: a response without a \\boxed answer is unparsable")

    @property
    def name(self) -> str:
        """As in `hpt eval --verifier`: the function, "boxed" (math with `boxed`) or the kind."""
        if self.function:
            return self.function
        return "boxed" if self.boxed and self.kind == "math" else self.kind
