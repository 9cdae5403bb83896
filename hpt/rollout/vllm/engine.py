"""Rollouts by vLLM in the trainer's process, on the trainer's GPU.

The engine is in sleep mode while the trainer trains. It starts with dummy weights, and the policy's weights are loaded
in place, tensor by tensor, before it generates. Nothing is written to disk except LoRA adapters
(`rollout.vllm.adapters: lora`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hpt.config.schema import Config
from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.arguments import engine_arguments, import_vllm
from hpt.rollout.vllm.responses import checked_rollout, logprobs_known
from hpt.rollout.weights import GetWeights
from hpt.support.errors import HptError, RolloutError
from hpt.support.seeds import request_seeds

T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """One response to sample, for one rank of the tensor parallel group."""

    rank: int
    prompt_index: int
    sample_index: int
    prompt: list[int]
    seed: int

    @property
    def id(self) -> str:
        return f"{self.rank}-{self.prompt_index}-{self.sample_index}"


class VllmEngine(RolloutEngine):
    """vLLM with the model of `config.model`, in sleep mode until the first `generate`.

    weights: gives the policy's current weights. save_adapters: writes the policy's adapters into a folder; `weights`
    must then be those of the base model. stop_ids: any of them ends a response. device: the trainer's.
    longest_prompt: in tokens; None: vLLM chooses the longest sequence by the memory it has.

    With `rollout.vllm.tensor_parallel` = k, every k neighbouring ranks form a tensor parallel group and share one copy
    of the model. `generate` is then a collective within the group.
    HptError if vLLM cannot be set up with these settings.
    """

    def __init__(
        self,
        config: Config,
        weights: GetWeights,
        *,
        stop_ids: Sequence[int],
        device: torch.device,
        longest_prompt: int | None,
        save_adapters: Callable[[Path], None] | None = None,
    ) -> None:
        self._weights = weights
        self._save_adapters = save_adapters
        self._stop_ids = list(stop_ids)
        self._device = device
        self._sleep_level = config.rollout.vllm.sleep_level if device.type == "cuda" else 0
        self._asleep = False
        self._weights_outdated = True
        self._adapters_outdated = True
        self._llm: Any = None
        self.steps = 0
        """Engine steps so far, in all calls: a heartbeat."""
        vllm = import_vllm()
        arguments = engine_arguments(config, device, longest_prompt)
        self._logprobs_mode = arguments["logprobs_mode"]
        self._tensor_parallel = arguments["tensor_parallel_size"]
        self._runs_on_trainer_ranks = arguments.get("distributed_executor_backend") == "external_launcher"
        self._owns_process_group = not dist.is_initialized()
        try:
            self._llm = vllm.LLM(**arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise HptError(f"rollout.engine vllm cannot start: {_with_causes(error)}") from error
        self.sleep()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        from vllm.inputs import TokensPrompt

        self.load_weights()
        rollouts: list[list[Rollout | None]] = [[None] * sampling.n for _ in prompts]
        engine = self._llm.llm_engine
        known = logprobs_known(self._logprobs_mode, sampling)
        unfinished: dict[str, _Request] = {}
        with _errors_named("generating"):
            engine.reset_prefix_cache()  # otherwise the sampled tokens could depend on earlier calls
            adapters = self._load_adapters()
            try:
                for request in self._requests(prompts, sampling, seed):
                    unfinished[request.id] = request
                    engine.add_request(
                        request.id,
                        TokensPrompt(prompt_token_ids=request.prompt),
                        self._sampling_params(sampling, request.seed),
                        lora_request=adapters,
                    )
                while engine.has_unfinished_requests():
                    outputs = engine.step()
                    self.steps += 1
                    for output in outputs:
                        if not output.finished:
                            continue
                        request = unfinished.pop(output.request_id)
                        if request.rank != self._group_rank:
                            continue
                        response = output.outputs[0]
                        rollout = checked_rollout(
                            response.token_ids, response.logprobs.logprobs, response.finish_reason, known=known
                        )
                        rollouts[request.prompt_index][request.sample_index] = rollout
                        if on_rollout:
                            on_rollout(request.prompt_index, request.sample_index, rollout)
            finally:
                if unfinished:
                    engine.abort_request(list(unfinished))
        return [[rollout for rollout in group if rollout] for group in rollouts]

    def load_weights(self) -> None:
        """Wakes the engine up and loads the policy's weights if they changed; `generate` does this by itself."""
        with _errors_named("loading the policy's weights"):
            if self._asleep:
                torch.cuda.empty_cache()  # vLLM needs the memory that the trainer's allocator holds back
                self._llm.wake_up(tags=["weights"])
            if self._weights_outdated:
                self._update_weights()
                self._weights_outdated = False
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
                self._asleep = False

    def sleep(self) -> None:
        if self._sleep_level == 0 or self._asleep:
            return
        with _errors_named("going to sleep"):
            self._llm.sleep(level=self._sleep_level)
        self._asleep = True
        if self._sleep_level == 2:  # which discards the weights
            self._weights_outdated = True
            self._adapters_outdated = True

    def weights_changed(self) -> None:
        self._adapters_outdated = True
        if self._save_adapters is None:
            self._weights_outdated = True

    def close(self) -> None:
        if self._llm is None:
            return
        from vllm.distributed.parallel_state import destroy_model_parallel

        core = self._llm.llm_engine.engine_core
        self._llm = None
        if self._owns_process_group:
            core.shutdown()
        else:  # shutdown() would also destroy the trainer's process group
            core._finalizer.detach()
            core.engine_core.model_executor.shutdown()
            destroy_model_parallel()

    @property
    def _group_rank(self) -> int:
        """This process's rank in its tensor parallel group."""
        return dist.get_rank() % self._tensor_parallel if self._runs_on_trainer_ranks else 0

    def _update_weights(self) -> None:
        weights: Any = self._weights()
        if self._tensor_parallel > 1 and not self._runs_on_trainer_ranks:
            weights = list(weights)  # sent to vLLM's worker processes
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._device.type == "cpu":
            self._llm.apply_model(_repack_head)

    def _load_adapters(self) -> Any:
        """vLLM's request for the policy's adapters, loaded again if they changed; None if adapters are merged."""
        if self._save_adapters is None:
            return None
        from vllm.lora.request import LoRARequest

        if self._adapters_outdated:
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
                self._save_adapters(Path(folder))
                self._llm.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
            self._adapters_outdated = False
        return LoRARequest("policy", 1, "already loaded")

    def _requests(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[_Request]:
        """The requests of all ranks in the tensor parallel group: each must add all of them, in the same order."""
        requests = []
        own_prompts = [list(prompt) for prompt in prompts]
        for rank, (rank_prompts, rank_seed) in enumerate(self._gather((own_prompts, seed))):
            seeds = iter(request_seeds(rank_seed, len(rank_prompts) * sampling.n))
            for prompt_index, prompt in enumerate(rank_prompts):
                for sample_index in range(sampling.n):
                    requests.append(_Request(rank, prompt_index, sample_index, prompt, next(seeds)))
        return requests

    def _gather(self, value: T) -> list[T]:
        """The values of all ranks in the tensor parallel group."""
        if not self._runs_on_trainer_ranks or self._tensor_parallel == 1:
            return [value]
        from vllm.distributed.parallel_state import get_tp_group

        values: list[Any] = [None] * self._tensor_parallel
        dist.all_gather_object(values, value, group=get_tp_group().cpu_group)
        return values

    def _sampling_params(self, sampling: Sampling, seed: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=seed,
            stop_token_ids=self._stop_ids,
            ignore_eos=True,  # only stop_token_ids end a response
            logprobs=0,  # only the sampled token's
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


@contextmanager
def _errors_named(doing: str) -> Iterator[None]:
    """Turns vLLM's errors into a RolloutError that says what was being done."""
    try:
        yield
    except (HptError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RolloutError(f"vLLM failed while {doing}: {_with_causes(error)}") from error


def _with_causes(error: BaseException) -> str:
    """One line with the error and the chain of errors that caused it."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        text = f"{type(cause).__name__}: {cause}"
        chain.append(" ".join(text.split()))
        cause = cause.__cause__
    return " <- ".join(chain)


def _repack_head(model: Any) -> None:
    """On a CPU vLLM computes with packed copies of the weights, and does not renew the copy of a tied head."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
