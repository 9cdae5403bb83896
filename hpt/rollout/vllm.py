"""Rollouts by vLLM inside the trainer's process, on the trainer's GPU.

The engine sleeps while the trainer trains. It starts with weights of no meaning and is given the policy's before it
generates, tensor by tensor and in place; nothing is written to a disk but, where asked for, LoRA adapters.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpt.config.schema import Config
from hpt.rollout.engine import OnRollout, Rollout, RolloutEngine, Sampling
from hpt.support.errors import ConfigError, HptError, RolloutError
from hpt.support.seeds import request_seeds

Weights = Callable[[], Iterable[tuple[str, torch.Tensor]]]

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Sizes that vLLM has room for adapters of."""


class VllmEngine(RolloutEngine):
    """vLLM with the model of `config.model`, asleep until the first `generate`.

    weights: gives the policy's weights as they are now, under the names of a checkpoint.
    save_adapters: writes the policy's adapters into a folder; `weights` are then those below them, and both are used.
    stop_ids: any of them ends a response. device: of the trainer. longest: tokens of the longest prompt with its
    response; None leaves it to the memory.

    With `rollout.vllm.tensor_parallel` = k every k neighbouring ranks of the launcher share a model. They generate
    together, so all of them must call `generate` as often.
    HptError where vLLM cannot be set up so.
    """

    def __init__(
        self,
        config: Config,
        weights: Weights,
        *,
        stop_ids: Sequence[int],
        device: torch.device,
        longest: int | None,
        save_adapters: Callable[[Path], None] | None = None,
    ) -> None:
        self._weights = weights
        self._save_adapters = save_adapters
        self._stop_ids = list(stop_ids)
        self._raw = config.rollout.top_p < 1  # the log-probabilities that vLLM gives
        self._sleep_level = config.rollout.vllm.sleep_level if device.type == "cuda" else 0
        self._on_cpu = device.type == "cpu"
        self._llm: Any = None
        self.steps = 0  # of all requests so far: a sign of life
        self._asleep = False
        self._base_stale = self._adapters_stale = True
        vllm = import_vllm()
        arguments = engine_arguments(config, device, longest)
        self._parallel = arguments["tensor_parallel_size"]
        self._external = arguments.get("distributed_executor_backend") == "external_launcher"
        self._own_group = not dist.is_initialized()
        try:
            self._llm = vllm.LLM(**arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise HptError(f"rollout.engine vllm cannot start: {describe(error)}") from error
        self.sleep()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        from vllm.inputs import TokensPrompt

        rollouts: list[list[Rollout | None]] = [[None] * sampling.n for _ in prompts]
        with self._failing("loading the policy's weights"):
            self._wake()
        engine = self._llm.llm_engine
        known = sampling.temperature in (0, 1) if self._raw else sampling.top_p == 1
        wanted: dict[str, tuple[int, int] | None] = {}  # our own requests, and None for those of ranks beside us
        with self._failing("generating"):
            engine.reset_prefix_cache()  # so that what is sampled does not depend on what was sampled before
            adapter = self._adapter()
            try:
                for rank, (theirs, their_seed) in enumerate(self._shared((list(prompts), seed))):
                    seeds = iter(request_seeds(their_seed, len(theirs) * sampling.n))
                    for index, place in product(range(len(theirs)), range(sampling.n)):
                        name = f"{rank}-{index}-{place}"
                        wanted[name] = (index, place) if rank == self._rank else None
                        request = TokensPrompt(prompt_token_ids=list(theirs[index]))
                        parameters = self._parameters(sampling, next(seeds))
                        engine.add_request(name, request, parameters, lora_request=adapter)
                while engine.has_unfinished_requests():
                    outputs = engine.step()
                    self.steps += 1
                    for output in outputs:
                        if output.finished and (own := wanted.pop(output.request_id)):
                            rollouts[own[0]][own[1]] = rollout = _rollout(output.outputs[0], known)
                            if on_rollout:
                                on_rollout(*own, rollout)
            finally:
                if wanted:
                    engine.abort_request(list(wanted))
        return [[rollout for rollout in group if rollout] for group in rollouts]

    def sleep(self) -> None:
        if self._sleep_level and not self._asleep:
            with self._failing("going to sleep"):
                self._llm.sleep(level=self._sleep_level)
            self._asleep = True
            if self._sleep_level == 2:
                self._base_stale = self._adapters_stale = True

    def weights_changed(self) -> None:
        self._adapters_stale = True
        self._base_stale |= self._save_adapters is None

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import destroy_model_parallel

        core = self._llm.llm_engine.engine_core
        self._llm = None
        if self._own_group:
            core.shutdown()
        else:  # the same, but for the trainer's connections, which vLLM would end with its own
            core._finalizer.detach()
            core.engine_core.model_executor.shutdown()
            destroy_model_parallel()

    @property
    def _rank(self) -> int:
        """Among the ranks that share a model."""
        return dist.get_rank() % self._parallel if self._external else 0

    def _wake(self) -> None:
        if self._asleep:
            torch.cuda.empty_cache()  # what the trainer no longer uses
            self._llm.wake_up(tags=["weights"])
        if self._base_stale:
            tensors: Any = self._weights()
            if self._parallel > 1 and not self._external:
                tensors = list(tensors)  # on their way to other processes
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": tensors})
            if self._on_cpu:
                self._llm.apply_model(_pack_head)
            self._base_stale = False
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def _adapter(self) -> Any:
        """The policy's adapters, given to vLLM where they changed; None where they are merged."""
        if self._save_adapters is None:
            return None
        from vllm.lora.request import LoRARequest

        if self._adapters_stale:
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
                self._save_adapters(Path(folder))
                self._llm.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
            self._adapters_stale = False
        return LoRARequest("policy", 1, "loaded already")

    def _parameters(self, sampling: Sampling, seed: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            stop_token_ids=self._stop_ids,
            ignore_eos=True,  # stop_ids are all that ends a response
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _shared(self, own: Any) -> list[Any]:
        """What each of the ranks has that share a model."""
        if not self._external or self._parallel == 1:
            return [own]
        from vllm.distributed.parallel_state import get_tp_group

        everyone: list[Any] = [None] * self._parallel
        dist.all_gather_object(everyone, own, group=get_tp_group().cpu_group)
        return everyone

    @contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (HptError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RolloutError(f"vLLM failed while {doing}: {describe(error)}") from error


def engine_arguments(config: Config, device: torch.device, longest: int | None) -> dict[str, Any]:
    """Arguments of vllm.LLM for the model and the rollouts of a recipe; `rollout.vllm.options` win."""
    settings = config.rollout.vllm
    arguments: dict[str, Any] = {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "load_format": "dummy",  # the policy's weights come from the trainer
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # a model folder's own sampling defaults must not reach in here
        # Of log pi at the sampling temperature vLLM has either the temperature or what is before the top-p cut.
        "logprobs_mode": "raw_logprobs" if config.rollout.top_p < 1 else "processed_logprobs",
        "max_model_len": longest or -1,
        "gpu_memory_utilization": settings.memory_share,
        "tensor_parallel_size": settings.tensor_parallel,
        "enforce_eager": device.type == "cpu",
        "enable_sleep_mode": device.type == "cuda" and settings.sleep_level > 0,
        "disable_log_stats": True,
    }
    if settings.adapters == "lora":
        assert config.model.lora is not None
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room(config.model.lora.rank)}
    if (ranks := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        if ranks % settings.tensor_parallel:
            raise ConfigError(
                f"rollout.vllm.tensor_parallel = {settings.tensor_parallel} does not divide the {ranks} processes "
                "of this run"
            )
        arguments["distributed_executor_backend"] = "external_launcher"
    return arguments | settings.options


def check_options(config: Config) -> None:
    """ConfigError where `rollout.vllm.options` or the adapters are not what vLLM takes. Imports vLLM."""
    import_vllm()
    from vllm.engine.arg_utils import EngineArgs

    allowed = {field.name for field in dataclasses.fields(EngineArgs)}
    if unknown := sorted(set(config.rollout.vllm.options) - allowed):
        raise ConfigError(
            f"rollout.vllm.options: vLLM has no {', '.join(map(repr, unknown))}; allowed are the arguments of vllm.LLM"
        )


def import_vllm() -> Any:
    """The package; ConfigError where it is missing."""
    # In-process: the engine shares the trainer's process, and with it the weights on the GPU.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        import vllm
    except ImportError as error:
        raise ConfigError(f"rollout.engine \"vllm\" needs vLLM ({error}): pip install 'hpt[vllm]'") from error
    return vllm


def describe(error: BaseException) -> str:
    """An error and what it came from, in a line."""
    causes = [f"{type(error).__name__}: {error}".strip()]
    while (cause := error.__cause__) is not None:
        error = cause
        causes.append(f"{type(error).__name__}: {error}".strip())
    return " <- ".join(" ".join(cause.split()) for cause in causes)


def _room(rank: int) -> int:
    fitting = [size for size in LORA_RANKS if size >= rank]
    if not fitting:
        raise ConfigError(f"model.lora.rank = {rank}: vLLM takes adapters up to rank {LORA_RANKS[-1]}")
    return fitting[0]


def _pack_head(model: Any) -> None:
    """On a CPU matrix products read packed copies of the weights. vLLM renews them, but not that of a tied head."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def _rollout(output: Any, known: bool) -> Rollout:
    tokens = list(output.token_ids)
    logprobs = list(output.logprobs.logprobs) if known else [float("nan")] * len(tokens)
    if output.finish_reason not in ("stop", "length") or len(logprobs) != len(tokens):
        raise RolloutError(
            f"vLLM ended a response as {output.finish_reason!r}, with {len(tokens)} tokens and {len(logprobs)} "
            "log-probabilities"
        )
    return Rollout(tokens, logprobs, output.finish_reason)
