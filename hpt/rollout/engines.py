"""Which rollout engine a recipe gets (`rollout.engine`). A new engine is registered in ENGINES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from transformers import PreTrainedModel

from hpt.config.schema import Config
from hpt.rollout.continuous import ContinuousEngine
from hpt.rollout.engine import RolloutEngine
from hpt.rollout.transformers import TransformersEngine
from hpt.rollout.vllm.arguments import EngineSettings, check_options
from hpt.rollout.vllm.client import VllmClient
from hpt.rollout.vllm.connection import ServerConnection
from hpt.rollout.vllm.engine import VllmEngine
from hpt.rollout.vllm.identity import check_server, transfer_backend
from hpt.rollout.vllm.waiting import ensure_server
from hpt.rollout.weights import named_weights, save_adapters
from hpt.support.device import pick_device
from hpt.support.distributed import launched
from hpt.support.optional_packages import require


@dataclass(frozen=True)
class EngineInputs:
    """What a rollout engine may be made from.

    model: the policy, trained on `device`. stop_ids: any of them ends a response. longest_prompt: tokens of the run's
    longest prompt. gathered_parameters: context in which every rank has all of the model's weights; a collective.
    """

    config: Config
    model: PreTrainedModel
    device: torch.device
    stop_ids: Sequence[int]
    longest_prompt: int
    gathered_parameters: Callable[[], AbstractContextManager[None]]


class EngineFactory:
    """Checks and makes one kind of rollout engine. A kind without requirements only defines `make`."""

    def require_packages(self, config: Config) -> None:
        """ConfigError if a package is missing. Called first, so it must be quick."""

    def check(self, config: Config, stop_ids: Sequence[int]) -> None:
        """HptError if the engine cannot sample for this run. Called by every rank, before the model is loaded."""

    def make(self, inputs: EngineInputs) -> RolloutEngine:
        """The engine, which samples from `inputs.model` as it is trained."""
        raise NotImplementedError


class TransformersFactory(EngineFactory):
    """transformers on the model being trained: `generate`, or continuous batching."""

    def make(self, inputs: EngineInputs) -> RolloutEngine:
        kind = ContinuousEngine if inputs.config.rollout.batching == "continuous" else TransformersEngine
        return kind(
            inputs.model,
            stop_ids=inputs.stop_ids,
            batch_size=inputs.config.rollout.batch_size,
            gathered_parameters=inputs.gathered_parameters,
        )


class VllmFactory(EngineFactory):
    """vLLM: in the trainer's process, or a server if the recipe has `rollout.vllm.url`."""

    def require_packages(self, config: Config) -> None:
        if config.rollout.vllm.url is None:
            require("vllm", 'rollout.engine "vllm"', "'hpt[vllm]'")
            if quantization := config.rollout.vllm.quantization:
                require("vllm_bnb_plugin", f'rollout.vllm.quantization "{quantization}"', "'hpt[vllm-4bit]'")
        elif (backend := transfer_backend(config, pick_device(config.device))) != "gloo":
            require("vllm", f'rollout.vllm.weight_transfer "{backend}", on the trainer\'s side, too,', "'hpt[vllm]'")

    def check(self, config: Config, stop_ids: Sequence[int]) -> None:
        if config.rollout.vllm.url is None:
            check_options(config)
        else:
            check = partial(check_server, ServerConnection(config), config, pick_device(config.device))
            ensure_server(check, config.rollout.vllm.wait, launched())

    def make(self, inputs: EngineInputs) -> RolloutEngine:
        config, model = inputs.config, inputs.model
        if config.rollout.vllm.url is not None:
            return VllmClient(
                config,
                partial(named_weights, model),
                stop_ids=inputs.stop_ids,
                vocabulary=model.config.get_text_config().vocab_size,
                device=inputs.device,
                longest_prompt=inputs.longest_prompt,
            )
        separate_adapters = config.rollout.vllm.adapters == "lora"
        reads_weights = config.rollout.vllm.quantization is not None
        return VllmEngine(
            EngineSettings.of_run(config, inputs.device, inputs.longest_prompt),
            stop_ids=inputs.stop_ids,
            weights=None if reads_weights else partial(named_weights, model, merged=not separate_adapters),
            save_adapters=partial(save_adapters, model) if separate_adapters else None,
        )


ENGINES: dict[str, EngineFactory] = {"transformers": TransformersFactory(), "vllm": VllmFactory()}
"""By the value of `rollout.engine`."""


def require_rollout_packages(config: Config) -> None:
    """ConfigError if a package that the recipe's rollout engine needs is missing."""
    ENGINES[config.rollout.engine].require_packages(config)


def check_rollout_engine(config: Config, stop_ids: Sequence[int]) -> None:
    """HptError if the recipe's rollout engine cannot sample for this run. To be called before the model is loaded."""
    ENGINES[config.rollout.engine].check(config, stop_ids)


def make_rollout_engine(inputs: EngineInputs) -> RolloutEngine:
    """The recipe's rollout engine, sampling from the model as it is trained."""
    return ENGINES[inputs.config.rollout.engine].make(inputs)
