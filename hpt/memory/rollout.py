"""The rollout side of a memory plan: KV cache and logits of `generate`, or vLLM's share of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.memory.components import Component
from hpt.memory.hardware import GIB, Hardware
from hpt.memory.meta_model import build_meta_model, read_architecture
from hpt.memory.trace import DECODING, RolloutTrace, trace_rollout
from hpt.memory.training import TrainedModel
from hpt.rollout.vllm.arguments import max_lora_rank

# What vLLM takes of its share beside weights and KV cache: its profiling pass, and captured CUDA graphs.
VLLM_WORKING = 2 * GIB
# Bytes of a 4-bit weight in vLLM: vllm-bnb-plugin undoes the quantization of the scales when it loads them, one per 64
# weights, and keeps them in float32.
VLLM_NF4_BYTES = 0.5 + 4 / 64
# What a sleeping vLLM leaves on a GPU: captured CUDA graphs, workspaces.
VLLM_ASLEEP = 1 * GIB

VLLM_WEIGHTS, VLLM_CACHE = "vLLM: weights", "vLLM: KV cache"
"""Names of components, by which the plan of time finds them."""


@dataclass
class RolloutMemory:
    """The components of the rollout engine, with notes and problems for the plan."""

    components: list[Component] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def rollout_memory(config: Config, hardware: Hardware, trained: TrainedModel, prompt: int) -> RolloutMemory:
    """The memory of rollouts with prompts of `prompt` tokens and the longest responses that the run asks for."""
    if config.rollout.engine == "vllm":
        return _vllm_memory(config, hardware, trained, prompt)
    return _transformers_memory(config, hardware, trained, prompt)


def _transformers_memory(config: Config, hardware: Hardware, trained: TrainedModel, prompt: int) -> RolloutMemory:
    """`generate` of the same model that is trained (`hpt.rollout.transformers`)."""
    settings = config.rollout
    sequences = min(settings.batch_size, -(-config.batch.questions // hardware.gpus) * config.sampled)
    trace = _traced(config.model.model_dump_json(), sequences, prompt, config.longest_response)
    head = trained.model.get_output_embeddings().weight
    logits = sampling_bytes(sequences, head.shape[0], trained.model.dtype.itemsize, settings.top_p)
    return RolloutMemory(
        [
            Component(f"KV cache of {sequences} sequences", rollout=trace.cache),
            Component("working memory of generation", rollout=trace.working + trained.memory.dequantized_bytes),
            Component("logits of a decoding step", rollout=logits),
        ]
    )


@lru_cache(maxsize=32)
def _traced(settings_json: str, sequences: int, prompt: int, response: int) -> RolloutTrace:
    """Kept, since advice plans many changes of a recipe and most of them leave the rollouts as they are."""
    settings = ModelConfig.model_validate_json(settings_json)
    model = build_meta_model(read_architecture(settings), settings, DECODING)
    return trace_rollout(model, sequences, prompt, response)


def sampling_bytes(sequences: int, vocabulary: int, itemsize: int, top_p: float) -> int:
    """Peak bytes of what `generate` does with the logits (sequences, vocabulary) of a decoding step.

    They exist in the model's dtype and in float32, and with them the log-probabilities of this and of the previous
    decoding step, scaled scores and probabilities; with top-p also sorted scores, their indices and the mask.
    """
    bytes_per_logit = itemsize + 5 * 4 + (0 if top_p == 1.0 else 4 + 8 + 4)
    return sequences * vocabulary * bytes_per_logit


def _vllm_memory(config: Config, hardware: Hardware, trained: TrainedModel, prompt: int) -> RolloutMemory:
    settings = config.rollout.vllm
    memory = RolloutMemory()
    if settings.url is not None:
        memory.notes.append(f"rollouts come from the server {settings.url}, whose GPUs are not counted here")
        return memory
    if hardware.gpu_bytes is None:
        memory.notes.append("vLLM's memory is not counted on a CPU")
        return memory
    share = round(settings.memory_share * hardware.gpu_bytes)
    itemsize = trained.model.dtype.itemsize
    weights = -(-_vllm_weight_bytes(config, trained) // settings.tensor_parallel)
    adapters = -(-_vllm_adapter_bytes(config, trained) // settings.tensor_parallel)
    model = weights + adapters
    cache = share - model - VLLM_WORKING
    shape = trained.architecture.config.get_text_config()
    heads = -(-getattr(shape, "num_key_value_heads", shape.num_attention_heads) // settings.tensor_parallel)
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    per_sequence = (prompt + config.longest_response) * shape.num_hidden_layers * 2 * heads * head_dim * itemsize
    in_host = hardware.gpus if settings.sleep_level == 1 else 0
    working = max(0, min(VLLM_WORKING, share - model))
    memory.components = [
        Component(VLLM_WEIGHTS, rollout=weights, host=weights * in_host, preallocated=True),
        Component("vLLM: adapters", rollout=adapters, host=adapters * in_host, preallocated=True),
        Component(VLLM_CACHE, rollout=max(0, cache), preallocated=True),
        Component("vLLM: working memory (assumed)", rollout=working, preallocated=True),
        Component.in_training("vLLM asleep (assumed)", VLLM_ASLEEP, preallocated=True)
        if settings.sleep_level
        else Component.in_training("vLLM", share, preallocated=True),
    ]
    if cache < per_sequence:
        memory.problems.append(
            f"rollout.vllm.memory_share = {settings.memory_share} leaves {max(0, cache) / GIB:.1f} GiB for the KV "
            f"cache, and one sequence of {prompt + config.longest_response} tokens takes {per_sequence / GIB:.2f}"
        )
    else:
        memory.notes.append(f"vLLM has room for {cache // per_sequence} sequences of full length at once")
    return memory


def _vllm_weight_bytes(config: Config, trained: TrainedModel) -> int:
    """vLLM's own copy of the model's weights, in the model's dtype or in 4 bits."""
    quantized = trained.memory.quantized_count if config.rollout.vllm.quantization else 0
    return round(quantized * VLLM_NF4_BYTES) + (trained.memory.count - quantized) * trained.model.dtype.itemsize


def _vllm_adapter_bytes(config: Config, trained: TrainedModel) -> int:
    """Adapters that stay apart: vLLM has room for the next of the ranks that it knows."""
    lora = config.model.lora
    if lora is None or config.rollout.vllm.adapters != "lora":
        return 0
    return trained.memory.adapter_count * trained.model.dtype.itemsize * max_lora_rank(lora.rank) // lora.rank
