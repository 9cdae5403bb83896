"""Rollouts by transformers' `generate` on the model being trained: no second copy of the weights to keep in sync."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hpt.rollout.engine import OnRollout, RolloutEngine, Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.weights import base_model
from hpt.support.errors import HptError


class TrainedModelEngine(RolloutEngine):
    """Samples from `model`, which is the one that is trained, at most `batch_size` sequences at a time.

    stop_ids: at least one; any of them ends a response.
    gathered_parameters: context in which the model has all its weights (ZeRO-3 gathers them). Every rank enters it
    around each call.
    """

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


class TransformersEngine(TrainedModelEngine):
    """`generate` in batches, each until its longest response ends."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        on_rollout: OnRollout | None = None,
    ) -> list[list[Rollout]]:
        requests = [index for index in range(len(prompts)) for _ in range(sampling.n)]
        requests.sort(key=lambda index: len(prompts[index]))  # prompts of similar length share a batch: less padding
        rollouts: list[list[Rollout]] = [[] for _ in prompts]
        with self.gathered_parameters(), generating(self.model, seed):
            for start in range(0, len(requests), self.batch_size):
                batch = requests[start : start + self.batch_size]
                sampled = self._sample([prompts[index] for index in batch], sampling)
                for index, rollout in zip(batch, sampled, strict=True):
                    rollouts[index].append(rollout)
                    if on_rollout:
                        on_rollout(index, len(rollouts[index]) - 1, rollout)
        return rollouts

    def _sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Rollout]:
        """One rollout per prompt. Prompts are padded on the left."""
        width = max(len(prompt) for prompt in prompts)
        pad_id = self.stop_ids[0]  # padding is masked out, so any token will do
        ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        attention_mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        recorder = _LogprobRecorder(sampling.temperature or 1.0)
        sequences = self.model.generate(  # type: ignore[operator]
            ids.to(self.model.device),
            attention_mask=attention_mask.to(self.model.device),
            generation_config=generation_config(sampling, self.stop_ids),
            logits_processor=LogitsProcessorList([recorder]),
        )
        responses = sequences[:, width:]
        logprobs = recorder.finish(responses)
        return [
            self._rollout(row_tokens, row_logprobs)
            for row_tokens, row_logprobs in zip(responses.tolist(), logprobs.tolist(), strict=True)
        ]

    def _rollout(self, tokens: list[int], logprobs: list[float]) -> Rollout:
        """Ends a response at its first stop token."""
        for place, token in enumerate(tokens):
            if token in self.stop_ids:
                return Rollout(tokens[: place + 1], logprobs[: place + 1], "stop")
        return Rollout(tokens, logprobs, "length")


def generation_config(sampling: Sampling, stop_ids: Sequence[int]) -> GenerationConfig:
    """transformers' settings for `sampling`. Any of `stop_ids` ends a response; the first is the padding."""
    settings = {
        "max_new_tokens": sampling.max_tokens,
        "eos_token_id": list(stop_ids),
        "pad_token_id": stop_ids[0],  # padding is masked out, so any token will do
        "use_cache": True,
        "top_k": 0,  # transformers' default is 50
    }
    if sampling.temperature == 0:
        return GenerationConfig(do_sample=False, **settings)
    return GenerationConfig(do_sample=True, temperature=sampling.temperature, top_p=sampling.top_p, **settings)


def is_divergence(error: BaseException) -> bool:
    """Whether it is what torch says where probabilities are not finite."""
    return "probability tensor contains" in str(error)


@contextmanager
def generating(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Context in which `model` samples: in evaluation mode, without gradients, with random numbers from `seed`.

    HptError where its probabilities are not finite.
    """
    was_training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with (
            _without_the_folders_defaults(model),
            _attention_for_generation(model),
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(),
        ):
            torch.manual_seed(seed)
            yield
    except RuntimeError as error:
        if not is_divergence(error):
            raise
        raise HptError(
            "no response can be sampled: the model's probabilities are not finite. Training has diverged, or the "
            "weights are broken; go on from an earlier checkpoint, with a smaller optimizer.lr"
        ) from error
    finally:
        model.train(was_training)


@contextmanager
def _without_the_folders_defaults(model: PreTrainedModel) -> Iterator[None]:
    """`generate` takes whatever a call leaves open from the model's folder: a repetition penalty, a min_p and others.

    They would change what is sampled, and log-probabilities and gradients would not know of it.
    """
    owner: Any = base_model(model)
    defaults = owner.generation_config
    owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = defaults


@contextmanager
def _attention_for_generation(model: PreTrainedModel) -> Iterator[None]:
    """Replaces flex attention by sdpa: it is compiled per shape, and the shape of a KV cache grows with every token."""
    configured = model.config._attn_implementation
    if configured != "flex_attention":
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(configured)


class _LogprobRecorder(LogitsProcessor):
    """Records the log-probability of each sampled token from the raw logits; holds one step's logits at a time."""

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
        """Log-probabilities (B, T) of `responses` (B, T)."""
        length = responses.shape[1]
        # The last token was sampled after the last call, unless generate ran a step beyond it.
        if len(self.steps) < length and self.previous is not None:
            self.steps.append(self.previous.gather(-1, responses[:, -1:]).squeeze(-1))
        return torch.stack(self.steps[:length], dim=1).float()
