"""Rollouts by vLLM in this process.

For a run the engine is on the trainer's GPU, and in sleep mode while the trainer trains. It starts with dummy weights,
and the policy's weights are loaded in place, tensor by tensor, before it generates. With `rollout.vllm.quantization`
it reads the base model itself, and only adapters are put in place. Nothing is written to disk except adapters
(`rollout.vllm.adapters: lora`). For an evaluation it reads the model once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.groups import Groups
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.arguments import EngineSettings, engine_arguments, import_vllm
from hpt.rollout.vllm.requests import Request, errors_named, requests_for, rollout_of, sampling_params
from hpt.rollout.vllm.responses import logprobs_known
from hpt.rollout.weights import GetWeights
from hpt.support.errors import HptError

T = TypeVar("T")


class VllmEngine(RolloutEngine):
    """vLLM with the model of `settings`, in sleep mode until the first `generate` where the settings have one.

    stop_ids: any of them ends a response. weights: gives the policy's current weights; None where vLLM reads its own,
    once. save_adapters: writes the policy's adapters into a folder; `weights` must then be those of the base model.

    In a run with `rollout.vllm.tensor_parallel` = k, every k neighbouring ranks form a tensor parallel group and share
    one copy of the model. `generate` is then a collective within the group.
    HptError if vLLM cannot be set up with these settings.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        stop_ids: Sequence[int],
        weights: GetWeights | None = None,
        save_adapters: Callable[[Path], None] | None = None,
    ) -> None:
        self._weights = weights
        self._save_adapters = save_adapters
        self._adapters = settings.adapters
        self._stop_ids = list(stop_ids)
        self._device = settings.device
        self._sleep_level = settings.sleep_level
        self._asleep = False
        self._weights_outdated = weights is not None
        self._adapters_outdated = save_adapters is not None
        self._llm: Any = None
        vllm = import_vllm()
        arguments = engine_arguments(settings)
        self._logprobs_mode = arguments["logprobs_mode"]
        self._tensor_parallel = arguments["tensor_parallel_size"]
        self._runs_on_trainer_ranks = arguments.get("distributed_executor_backend") == "external_launcher"
        self._owns_process_group = not dist.is_initialized()
        with errors_named("starting", HptError):
            self._llm = vllm.LLM(**arguments)
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
        groups = Groups(len(prompts), sampling.n, on_rollout)
        engine = self._llm.llm_engine
        known = logprobs_known(self._logprobs_mode, sampling)
        unfinished: dict[str, Request] = {}
        with errors_named("generating"):
            engine.reset_prefix_cache()  # otherwise the sampled tokens could depend on earlier calls
            adapters = self._adapter_request()
            try:
                for request in self._requests(prompts, sampling, seed):
                    unfinished[request.id] = request
                    engine.add_request(
                        request.id,
                        TokensPrompt(prompt_token_ids=request.prompt),
                        sampling_params(sampling, request.seed, self._stop_ids),
                        lora_request=adapters,
                    )
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        if not output.finished:
                            continue
                        request = unfinished.pop(output.request_id)
                        if request.rank != self._group_rank:
                            continue
                        groups.add(request.index, request.number, rollout_of(output.outputs[0], known=known))
            finally:
                if unfinished:
                    engine.abort_request(list(unfinished))
        return groups.finished()

    def load_weights(self) -> None:
        """Wakes the engine up and loads the policy's weights if they changed; `generate` does this by itself."""
        with errors_named("loading the policy's weights"):
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
        with errors_named("going to sleep"):
            self._llm.sleep(level=self._sleep_level)
        self._asleep = True
        if self._sleep_level == 2:  # which discards the weights
            self._weights_outdated = True
            self._adapters_outdated = self._save_adapters is not None

    def weights_changed(self) -> None:
        if self._save_adapters is None:
            self._weights_outdated = True
        else:
            self._adapters_outdated = True

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
        assert self._weights is not None
        weights: Any = self._weights()
        if self._tensor_parallel > 1 and not self._runs_on_trainer_ranks:
            weights = list(weights)  # sent to vLLM's worker processes
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self._device.type == "cpu":
            self._llm.apply_model(_repack_head)

    def _adapter_request(self) -> Any:
        """vLLM's request for adapters, those of the policy loaded again if they changed; None where there are none."""
        if self._save_adapters is None and self._adapters is None:
            return None
        from vllm.lora.request import LoRARequest

        if self._save_adapters is None:
            return LoRARequest("policy", 1, str(self._adapters))
        if self._adapters_outdated:
            with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
                self._save_adapters(Path(folder))
                self._llm.llm_engine.add_lora(LoRARequest("policy", 1, folder, load_inplace=True))
            self._adapters_outdated = False
        return LoRARequest("policy", 1, "already loaded")

    def _requests(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Request]:
        """The requests of all ranks in the tensor parallel group: each must add all of them, in the same order."""
        own_prompts = [list(prompt) for prompt in prompts]
        asked = enumerate(self._gather((own_prompts, seed)))
        return [
            request
            for rank, (rank_prompts, rank_seed) in asked
            for request in requests_for(rank_prompts, sampling.n, rank_seed, rank)
        ]

    def _gather(self, value: T) -> list[T]:
        """The values of all ranks in the tensor parallel group."""
        if not self._runs_on_trainer_ranks or self._tensor_parallel == 1:
            return [value]
        from vllm.distributed.parallel_state import get_tp_group

        values: list[Any] = [None] * self._tensor_parallel
        dist.all_gather_object(values, value, group=get_tp_group().cpu_group)
        return values


def _repack_head(model: Any) -> None:
    """On a CPU vLLM computes with packed copies of the weights, and does not renew the copy of a tied head."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)
