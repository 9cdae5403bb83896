"""The rollout engine of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hpt.config.schema import Config
from hpt.rollout.engine import RolloutEngine
from hpt.rollout.transformers import TransformersEngine
from hpt.rollout.vllm_client import VllmClient
from hpt.rollout.weights import named_weights


def check_rollout_engine(config: Config, stop_ids: Sequence[int]) -> None:
    """For before a model is loaded: HptError where vLLM is missing, or its server absent or with another model."""
    if config.rollout.engine != "vllm":
        return
    if config.rollout.vllm.url is None:
        from hpt.rollout.vllm import check_options

        check_options(config)
    else:
        model = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
        VllmClient(config, list, model, stop_ids)


def make_rollout_engine(
    config: Config,
    model: PreTrainedModel,
    device: torch.device,
    stop_ids: Sequence[int],
    longest_prompt: Callable[[], int],
    whole_weights: Callable[[], AbstractContextManager[None]],
) -> RolloutEngine:
    """An engine that samples from `model`, which is trained on `device`, as it is.

    longest_prompt: counts tokens, asked for by vLLM alone. whole_weights: see `TransformersEngine`.
    """
    if config.rollout.engine == "transformers":
        batch_size = config.rollout.batch_size
        return TransformersEngine(model, stop_ids=stop_ids, batch_size=batch_size, whole_weights=whole_weights)
    if config.rollout.vllm.url:
        return VllmClient(config, partial(named_weights, model), model.config, stop_ids)
    from hpt.rollout.vllm import VllmEngine

    apart = config.rollout.vllm.adapters == "lora"
    response = max(config.rollout.max_tokens, config.eval.max_tokens or 0)
    return VllmEngine(
        config,
        partial(named_weights, model, merged=not apart),
        stop_ids=stop_ids,
        device=device,
        longest=longest_prompt() + response,
        save_adapters=partial(_save_adapters, model) if apart else None,
    )


def _save_adapters(model: PreTrainedModel, folder: Path) -> None:
    # peft's own choice for embeddings would ask the hub for the base model's configuration.
    model.save_pretrained(folder, save_embedding_layers=False)
