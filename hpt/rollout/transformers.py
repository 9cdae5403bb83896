"""Rollouts by `generate` of the very model that is trained: no second copy of the weights, nothing to synchronise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hpt.rollout.engine import OnRollout, Rollout, RolloutEngine, Sampling


class TransformersEngine(RolloutEngine):
    """Any of `stop_ids`, at least one, ends a response; `batch_size` sequences are generated at once.

    `whole_weights` is entered around a call, by every rank: in it the model must have all its weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Sequence[int],
        batch_size: int,
        whole_weights: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model = model
        self.device = model.device
        self.whole_weights = whole_weights
        self.stop_ids = list(stop_ids)
        self.pad_id = self.stop_ids[0]  # attended by nothing; it fills up what has ended
        self.batch_size = batch_size

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        requests = [index for index in range(len(prompts)) for _ in range(sampling.n)]
        requests.sort(key=lambda index: len(prompts[index]))  # stable: like lengths share a batch, so little padding
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        was_training = self.model.training
        self.model.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with (
                self.whole_weights(),
                _attention_of_generation(self.model),
                torch.random.fork_rng(devices=devices),
                torch.inference_mode(),
            ):
                torch.manual_seed(seed)
                for start in range(0, len(requests), self.batch_size):
                    batch = requests[start : start + self.batch_size]
                    for index, rollout in zip(batch, self._sample([prompts[i] for i in batch], sampling), strict=True):
                        rollouts[index].append(rollout)
                        if on_rollout:
                            on_rollout(index, len(rollouts[index]) - 1, rollout)
        finally:
            self.model.train(was_training)
        return rollouts

    def _sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Rollout]:
        width = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[self.pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        attended = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        recorder = _LogprobRecorder(sampling.temperature or 1.0)
        sequences = self.model.generate(  # type: ignore[operator]
            ids.to(self.device),
            attention_mask=attended.to(self.device),
            generation_config=self._generation_config(sampling),
            logits_processor=LogitsProcessorList([recorder]),
        )
        responses = sequences[:, width:]
        logprobs = recorder.finish(responses)
        return [self._rollout(*row) for row in zip(responses.tolist(), logprobs.tolist(), strict=True)]

    def _rollout(self, tokens: list[int], logprobs: list[float]) -> Rollout:
        stop = next((place for place, token in enumerate(tokens) if token in self.stop_ids), None)
        if stop is None:
            return Rollout(tokens, logprobs, "length")
        return Rollout(tokens[: stop + 1], logprobs[: stop + 1], "stop")

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        settings = {
            "max_new_tokens": sampling.max_tokens,
            "eos_token_id": self.stop_ids,
            "pad_token_id": self.pad_id,
            "use_cache": True,
            # A model folder's own sampling defaults must not reach in here.
            "top_k": 0,
            "repetition_penalty": 1.0,
        }
        if sampling.temperature == 0:
            return GenerationConfig(do_sample=False, **settings)
        return GenerationConfig(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, **settings)


@contextmanager
def _attention_of_generation(model: PreTrainedModel) -> Iterator[None]:
    """sdpa in place of flex attention, which is compiled for its shapes, and a cache grows with every token."""
    own = model.config._attn_implementation
    if own != "flex_attention":
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


class _LogprobRecorder(LogitsProcessor):
    """Takes the log-probability of each sampled token from the raw logits, holding one step's logits at a time."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.steps: list[torch.Tensor] = []  # (B,) each
        self.previous: torch.Tensor | None = None  # (B, V)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.previous is not None:
            self.steps.append(self.previous.gather(-1, input_ids[:, -1:]).squeeze(-1))
        self.previous = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        return scores

    def finish(self, responses: torch.Tensor) -> torch.Tensor:
        """(B, T) log-probabilities of `responses` (B, T). generate may have run a step past the last token kept."""
        length = responses.shape[1]
        if len(self.steps) < length and self.previous is not None:
            self.steps.append(self.previous.gather(-1, responses[:, -1:]).squeeze(-1))
        return torch.stack(self.steps[:length], dim=1).float()
