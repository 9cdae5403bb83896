"""Rollouts by transformers' continuous batching on the model being trained: where one response ends, the next begins.

`generate` (`hpt.rollout.transformers`) computes a batch for as long as its longest response. Which of the two is faster
depends on the model and the machine: `python -m bench generate` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig

from hpt.rollout.engine import OnRollout, Sampling
from hpt.rollout.groups import Groups
from hpt.rollout.rollout import Rollout
from hpt.rollout.transformers import TrainedModelEngine, generating, generation_config, is_divergence
from hpt.support.errors import RolloutError

PAGE_TOKENS = 64
"""Tokens of a page of the KV cache; a sequence takes whole pages."""

PREFILL_TOKENS = 1024
"""Prompt tokens that a forward pass takes at most, beside one token of each running sequence."""


class ContinuousEngine(TrainedModelEngine):
    """Continuous batches: a response takes the place of one that has ended."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        groups = Groups(len(prompts), sampling.n, on_rollout)
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
                    groups.add(index, number, self._rollout(output, sampling))
            finally:
                manager.stop(block=True)
                manager.destroy()
        return groups.finished()

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
            if isinstance(cause, torch.OutOfMemoryError) or (cause and is_divergence(cause)):
                raise cause
            raise RolloutError(f"transformers' continuous batching has failed: {cause or output.error}") from cause
        if output.is_finished():
            return output
