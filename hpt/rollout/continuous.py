"""Rollouts by transformers' continuous batching on the model being trained: where one response ends, the next begins.

`generate` (`hpt.rollout.transformers`) computes a batch for as long as its longest response. Which of the two is faster
depends on the model and the machine: `python -m bench generate` measures both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, PreTrainedModel

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.transformers import generating, generation_config
from hpt.support.errors import RolloutError

PAGE_TOKENS = 64
"""Tokens of a page of the KV cache; a sequence takes whole pages."""

PREFILL_TOKENS = 1024
"""Prompt tokens that a forward pass takes at most, beside one token of each running sequence."""


class ContinuousEngine(RolloutEngine):
    """Samples from `model`, at most `batch_size` sequences at a time; arguments as for `TransformersEngine`."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Sequence[int],
        batch_size: int,
        gathered_parameters: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model
        self.stop_ids = list(stop_ids)
        self.batch_size = batch_size
        self.gathered_parameters = gathered_parameters

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        rollouts: list[list[Rollout | None]] = [[None] * sampling.n for _ in prompts]
        with self.gathered_parameters(), generating(self.model, seed):
            if not prompts:
                return []
            longest = max(map(len, prompts)) + sampling.max_tokens
            model: Any = self.model
            manager = model.init_continuous_batching(
                generation_config=generation_config(sampling, self.stop_ids),
                continuous_batching_config=self._settings(longest, seed),
            )
            try:
                # All requests are there before the first step: what runs together then does not depend on timing.
                for index, prompt in enumerate(prompts):
                    for number in range(sampling.n):
                        manager.add_request(list(prompt), request_id=f"{index} {number}")
                manager.start()
                for _ in range(len(prompts) * sampling.n):
                    output = _next_result(manager)
                    index, number = map(int, output.request_id.split())
                    rollout = self._rollout(output, sampling)
                    rollouts[index][number] = rollout
                    if on_rollout:
                        on_rollout(index, number, rollout)
            finally:
                manager.stop(block=True)
                manager.destroy()
        return [[rollout for rollout in group if rollout] for group in rollouts]

    def _settings(self, longest: int, seed: int) -> ContinuousBatchingConfig:
        """Room for `batch_size` sequences of `longest` tokens."""
        return ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=self.batch_size * -(-longest // PAGE_TOKENS),
            max_batch_tokens=self.batch_size + PREFILL_TOKENS,
            max_requests_per_batch=self.batch_size,
            return_logprobs=True,
            auto_switch_to_flash=False,  # the trainer chose its attention
            seed=seed % 2**31,
        )

    def _rollout(self, output: Any, sampling: Sampling) -> Rollout:
        tokens, logprobs = list(output.generated_tokens), list(output.logprobs)
        if not tokens or len(logprobs) != len(tokens):
            raise RolloutError(
                f"transformers ended a response with {len(tokens)} tokens and {len(logprobs)} log-probabilities"
            )
        if sampling.top_p < 1 and sampling.temperature > 0:  # those are of what the cut left
            logprobs = [float("nan")] * len(tokens)
        return Rollout(tokens, logprobs, "stop" if tokens[-1] in self.stop_ids else "length")


def _next_result(manager: Any) -> Any:
    """The next finished response. RolloutError, with its cause, where generation has failed."""
    while True:
        output = manager.get_result(timeout=1)
        if output is None and manager.is_running():
            continue
        if output is None or output.error is not None:
            cause = manager.background_thread_status.fatal_error
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause
            raise RolloutError(f"transformers' continuous batching has failed: {cause or output.error}") from cause
        if output.is_finished():
            return output
