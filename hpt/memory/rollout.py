"""The rollout side of a plan: keys and values, one step's logits, or an engine with memory of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpt.config.schema import Config
from hpt.memory.hardware import GIB, Hardware
from hpt.memory.parts import Part
from hpt.memory.skeleton import build_skeleton
from hpt.memory.trace import DECODING, trace_rollout
from hpt.memory.training import TrainedModel

# Of vLLM's share, beside weights and keys and values: the pass that it measures itself by, and captured graphs.
VLLM_WORKING = 2 * GIB
# What a sleeping vLLM leaves on a GPU: captured graphs, workspaces.
VLLM_ASLEEP = 1 * GIB


@dataclass
class RolloutParts:
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def rollout_parts(config: Config, hardware: Hardware, traced: TrainedModel, prompt: int) -> RolloutParts:
    """Of prompts of `prompt` tokens and the longest responses that the run asks for."""
    if config.rollout.engine == "vllm":
        return _vllm_parts(config, hardware, traced, prompt)
    return _transformers_parts(config, hardware, traced, prompt)


def _transformers_parts(config: Config, hardware: Hardware, traced: TrainedModel, prompt: int) -> RolloutParts:
    """`generate` of the very model that is trained (`hpt.rollout.transformers`)."""
    settings = config.rollout
    sequences = min(settings.batch_size, -(-config.batch.questions // hardware.gpus) * config.sampled)
    model = build_skeleton(traced.architecture, config.model, DECODING)
    found = trace_rollout(model, sequences, prompt, config.longest_response)
    logits = sampling_bytes(
        sequences, model.get_output_embeddings().weight.shape[0], model.dtype.itemsize, settings.top_p
    )
    return RolloutParts(
        [
            Part(f"keys and values of {sequences} sequences", rollout=found.cache),
            Part("working memory of generation", rollout=found.working + traced.weights.dequantized),
            Part("logits of a step", rollout=logits),
        ]
    )


def sampling_bytes(sequences: int, vocabulary: int, itemsize: int, top_p: float) -> int:
    """Peak of what `generate` does with a step's logits (B, V).

    The model's, their float32 copy, the log-probabilities of this step and of the one before, scaled scores and
    probabilities; with top-p also sorted scores, their places and the mask.
    """
    numbers = itemsize + 5 * 4 + (0 if top_p == 1.0 else 4 + 8 + 4)
    return sequences * vocabulary * numbers


def _vllm_parts(config: Config, hardware: Hardware, traced: TrainedModel, prompt: int) -> RolloutParts:
    settings = config.rollout.vllm
    found = RolloutParts()
    if settings.url is not None:
        found.notes.append(f"rollouts come from the server {settings.url}, whose GPUs are not counted here")
        return found
    if hardware.gpu_bytes is None:
        found.notes.append("vLLM's memory is not counted on a CPU")
        return found
    share = round(settings.memory_share * hardware.gpu_bytes)
    itemsize = traced.model.dtype.itemsize
    weights = -(-traced.weights.total * itemsize // settings.tensor_parallel)
    cache = share - weights - VLLM_WORKING
    shape = traced.architecture.config.get_text_config()
    heads = -(-getattr(shape, "num_key_value_heads", shape.num_attention_heads) // settings.tensor_parallel)
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    per_sequence = (prompt + config.longest_response) * shape.num_hidden_layers * 2 * heads * head_dim * itemsize
    resident = {0: share, 1: VLLM_ASLEEP, 2: VLLM_ASLEEP}[settings.sleep_level]
    found.parts = [
        Part("vLLM: weights", rollout=weights, host=weights * hardware.gpus if settings.sleep_level == 1 else 0),
        Part("vLLM: keys and values", rollout=max(0, cache)),
        Part("vLLM: working memory (assumed)", rollout=max(0, min(VLLM_WORKING, share - weights))),
        Part.training("vLLM asleep (assumed)" if settings.sleep_level else "vLLM", resident),
    ]
    if cache < per_sequence:
        found.problems.append(
            f"rollout.vllm.memory_share = {settings.memory_share} leaves {max(0, cache) / GIB:.1f} GiB for keys and "
            f"values, and one sequence of {prompt + config.longest_response} tokens takes {per_sequence / GIB:.2f}"
        )
    else:
        found.notes.append(f"vLLM has room for {cache // per_sequence} sequences of full length at once")
    return found
