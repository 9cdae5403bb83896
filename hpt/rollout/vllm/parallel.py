"""Rollouts by several copies of vLLM, each on its own GPUs: vLLM's data parallelism, which balances the requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.groups import Groups
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.arguments import EngineSettings, engine_arguments, import_vllm
from hpt.rollout.vllm.requests import Request, errors_named, requests_for, rollout_of, sampling_params
from hpt.rollout.vllm.responses import logprobs_known
from hpt.support.errors import HptError

T = TypeVar("T")


class ParallelVllmEngine(RolloutEngine):
    """`settings.data_parallel` copies of a model that vLLM reads itself, each in processes of its own.

    stop_ids: any of them ends a response. HptError if vLLM cannot be set up with these settings.
    vLLM runs in an event loop on a thread, so that a notebook, whose own loop is running, can use it.
    """

    def __init__(self, settings: EngineSettings, *, stop_ids: Sequence[int]) -> None:
        self._settings = settings
        self._stop_ids = list(stop_ids)
        self._engine: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        try:
            with errors_named("starting", HptError):
                self._run(self._start())
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        known = logprobs_known(self._settings.logprobs_mode, sampling)

        async def sample(request: Request) -> tuple[Request, Rollout]:
            return request, rollout_of(await self._response(request, sampling), known=known)

        async def sample_all() -> list[list[Rollout]]:
            groups = Groups(len(prompts), sampling.n, on_rollout)
            await self._engine.reset_prefix_cache()  # otherwise the sampled tokens could depend on earlier calls
            async with asyncio.TaskGroup() as running:
                tasks = [running.create_task(sample(request)) for request in requests_for(prompts, sampling.n, seed)]
                for finished in asyncio.as_completed(tasks):
                    request, rollout = await finished
                    groups.add(request.index, request.number, rollout)
            return groups.finished()

        with errors_named("generating"):
            try:
                return self._run(sample_all())
            except BaseExceptionGroup as group:  # the first failure has cancelled the other requests
                raise group.exceptions[0] from None

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        import_vllm()
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # Set here, so that `close` finds it where the waiting thread was interrupted.
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(self._settings)))

    async def _stop(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None  # before its loop is closed, which its end needs
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _response(self, request: Request, sampling: Sampling) -> Any:
        """vLLM's CompletionOutput for a request."""
        from vllm.inputs import TokensPrompt
        from vllm.lora.request import LoRARequest

        adapters = self._settings.adapters
        outputs = self._engine.generate(
            TokensPrompt(prompt_token_ids=request.prompt),
            sampling_params(sampling, request.seed, self._stop_ids),
            request.id,
            lora_request=adapters and LoRARequest("policy", 1, str(adapters)),
        )
        return [output.outputs[0] async for output in outputs][-1]

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done in the event loop; where this thread is interrupted, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
