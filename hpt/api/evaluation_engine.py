"""The engine that samples an evaluation's responses: transformers' `generate`, or vLLM with all questions at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from hpt.config.sections.evaluation import EvaluationSettings
from hpt.config.sections.model import ModelConfig
from hpt.config.sections.section import Dtype
from hpt.model.adapters import adapter_rank, base_model_path, holds_adapters
from hpt.model.loading import load_model
from hpt.rollout import RolloutEngine, TransformersEngine
from hpt.rollout.vllm.arguments import EngineSettings, check_heads, check_platform
from hpt.rollout.vllm.engine import VllmEngine
from hpt.rollout.vllm.parallel import ParallelVllmEngine
from hpt.support.errors import ConfigError
from hpt.support.model_config import read_model_config
from hpt.support.optional_packages import installed, require

EngineKind = Literal["transformers", "vllm"]


def choose_engine(path: str, settings: EvaluationSettings, device: torch.device) -> EngineKind:
    """auto: vLLM where it is installed and the device is a GPU.

    ConfigError where the engine is missing, or is asked for what it cannot do with this machine or model.
    """
    kind = settings.engine
    if kind == "auto":
        kind = "vllm" if device.type == "cuda" and installed("vllm") else "transformers"
    copies, split = settings.data_parallel, settings.tensor_parallel
    asked = f"--data-parallel {copies} and --tensor-parallel {split}"
    if kind == "transformers":
        if copies * split > 1:
            raise ConfigError(f"{asked} go with --engine vllm; here it is transformers")
        return kind
    require("vllm", "--engine vllm", "'hpt[vllm]'")
    check_platform(device)
    if device.type == "cuda":
        if device.index is not None:
            raise ConfigError(
                f"--device {device}: vLLM takes the first of the GPUs that it sees; use --device cuda with the "
                f"environment variable CUDA_VISIBLE_DEVICES={device.index}"
            )
        if copies * split > torch.cuda.device_count():
            raise ConfigError(f"{asked} need {copies * split} GPUs; torch sees {torch.cuda.device_count()}")
    check_heads(_config(path), split, "--tensor-parallel")
    return kind


def model_dtype(path: str, settings: EvaluationSettings, device: torch.device) -> Dtype:
    """auto: the dtype in the model's config.json on a GPU; float32 on a CPU, which is slow at 16 bits.

    float32, too, where a config.json does not say, and where there is none: loading the model will report that.
    """
    if settings.dtype != "auto":
        return settings.dtype
    if device.type != "cpu":
        dtype = getattr(_config(path), "dtype", None)
        if dtype is torch.bfloat16:
            return "bfloat16"
        if dtype is torch.float16:
            return "float16"
    return "float32"


def make_engine(
    kind: EngineKind,
    path: str,
    settings: EvaluationSettings,
    device: torch.device,
    *,
    dtype: Dtype,
    stop_ids: Sequence[int],
    longest_sequence: int,
) -> RolloutEngine:
    """An engine with the model in `path`, a folder or a name on the hub, with its adapters where it holds some.

    longest_sequence: of a prompt and its response, in tokens. HptError where the model cannot be loaded.
    """
    if kind == "transformers":
        model = load_model(path, ModelConfig(path=path, dtype=dtype), device)
        return TransformersEngine(model, stop_ids=stop_ids, batch_size=settings.batch_size)
    engine = vllm_settings(path, settings, device, dtype=dtype, longest_sequence=longest_sequence)
    if settings.data_parallel > 1:
        return ParallelVllmEngine(engine, stop_ids=stop_ids)
    return VllmEngine(engine, stop_ids=stop_ids)


def vllm_settings(
    path: str, settings: EvaluationSettings, device: torch.device, *, dtype: Dtype, longest_sequence: int
) -> EngineSettings:
    """As `make_engine`. Adapters stay apart from their base model, whose config is the one they were trained with."""
    config, folder = _config(path), Path(path).expanduser()
    options: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    adapters = None
    if holds_adapters(path):
        adapters, path = folder, base_model_path(folder)
        if (folder / CONFIG_NAME).is_file():
            options["hf_config_path"] = str(folder)
        if hasattr(config, "quantization_config"):
            overrides["quantization_config"] = None  # of QLoRA; adapters are applied to 16-bit weights
    if getattr(config, "max_position_embeddings", longest_sequence) < longest_sequence:
        overrides["max_position_embeddings"] = longest_sequence  # go beyond them, as transformers does
    if overrides:
        options["hf_overrides"] = overrides
    return EngineSettings(
        model=ModelConfig(path=path, dtype=dtype),
        device=device,
        longest_sequence=longest_sequence,
        memory_share=settings.memory_share,
        tensor_parallel=settings.tensor_parallel,
        data_parallel=settings.data_parallel,
        loads_weights=True,
        lora_rank=adapter_rank(adapters) if adapters else None,
        adapters=adapters,
        options=options,
    )


def _config(path: str) -> PreTrainedConfig | None:
    """The config of a model, or of the base model of adapters that have none beside them; None where there is none."""
    folder = Path(path).expanduser()
    if holds_adapters(path) and not (folder / CONFIG_NAME).is_file():
        path = base_model_path(folder)
    try:
        return read_model_config(path)
    except (OSError, ValueError):
        return None
