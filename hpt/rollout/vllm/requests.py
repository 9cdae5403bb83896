"""What vLLM is asked for a response, and what it answers, whichever way its engine runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hpt.rollout.engine import Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.responses import checked_rollout
from hpt.support.errors import HptError, RolloutError
from hpt.support.seeds import request_seeds


@dataclass(frozen=True)
class Request:
    """One response to sample: number `number` of the prompt at `index`. rank: of a tensor parallel group."""

    rank: int
    index: int
    number: int
    prompt: list[int]
    seed: int

    @property
    def id(self) -> str:
        return f"{self.rank}-{self.index}-{self.number}"


def requests_for(prompts: Sequence[Sequence[int]], n: int, seed: int, rank: int = 0) -> Iterator[Request]:
    """`n` requests for each prompt. Each has its own seed, so that no response depends on which others run with it."""
    seeds = iter(request_seeds(seed, len(prompts) * n))
    for index, prompt in enumerate(prompts):
        for number in range(n):
            yield Request(rank, index, number, list(prompt), next(seeds))


def sampling_params(sampling: Sampling, seed: int, stop_ids: Sequence[int]) -> Any:
    """vLLM's SamplingParams of one request."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=seed,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,  # only stop_token_ids end a response
        logprobs=0,  # only the sampled token's
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def rollout_of(response: Any, *, known: bool) -> Rollout:
    """The rollout in vLLM's CompletionOutput; `known` and errors as in `checked_rollout`."""
    return checked_rollout(response.token_ids, response.logprobs.logprobs, response.finish_reason, known=known)


@contextmanager
def errors_named(doing: str, kind: type[HptError] = RolloutError) -> Iterator[None]:
    """Turns vLLM's errors into one of this kind that says what was being done."""
    try:
        yield
    except (HptError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise kind(f"vLLM failed while {doing}: {_with_causes(error)}") from error


def _with_causes(error: BaseException) -> str:
    """One line with the error and the chain of errors that caused it."""
    chain = []
    cause: BaseException | None = error
    while cause is not None:
        text = f"{type(cause).__name__}: {cause}"
        chain.append(" ".join(text.split()))
        cause = cause.__cause__
    return " <- ".join(chain)
