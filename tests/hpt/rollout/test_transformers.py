"""Rollouts by transformers, in fixed and continuous batches, against the model's own log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from hpt.rollout import Rollout, RolloutEngine, Sampling, TransformersEngine
from hpt.rollout.continuous import ContinuousEngine
from hpt.support.errors import HptError, RolloutError

STOP, OTHER_STOP = 1, 2
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3]]


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    model = tiny(17)
    model.generation_config.repetition_penalty = 1.3  # a default of the folder, which nothing may follow
    return model


def tiny(vocabulary: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Qwen2ForCausalLM(config).float()


Engine = Callable[..., RolloutEngine]


@pytest.fixture(params=[TransformersEngine, ContinuousEngine])
def engine(request: pytest.FixtureRequest) -> Engine:
    def make(model: Qwen2ForCausalLM, batch_size: int = 5) -> RolloutEngine:
        return request.param(model, stop_ids=[STOP, OTHER_STOP], batch_size=batch_size)

    return make


def model_logits(model: Qwen2ForCausalLM, prompt: list[int], rollout: Rollout) -> torch.Tensor:
    """Logits before each token of one unpadded sequence, computed without a KV cache."""
    with torch.no_grad():
        return model(torch.tensor([prompt + rollout.tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1].double()


def model_logprobs(model: Qwen2ForCausalLM, prompt: list[int], rollout: Rollout, temperature: float) -> torch.Tensor:
    every = torch.log_softmax(model_logits(model, prompt, rollout) / temperature, -1)
    return every.gather(-1, torch.tensor(rollout.tokens)[:, None]).squeeze(-1)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.3, 0.8), (0.0, 1.0)])
def test_logprobs_are_the_models(engine: Engine, model: Qwen2ForCausalLM, temperature: float, top_p: float) -> None:
    sampling = Sampling(n=3, max_tokens=12, temperature=temperature, top_p=top_p)
    rollouts = engine(model).generate(PROMPTS, sampling, seed=3)
    assert [len(group) for group in rollouts] == [3] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, rollouts, strict=True):
        for rollout in group:
            if top_p < 1 and isinstance(engine(model), ContinuousEngine):
                assert all(map(math.isnan, rollout.logprobs))  # it only knows those after the cut
                continue
            expected = model_logprobs(model, prompt, rollout, temperature or 1.0)
            # fp32 logits of order 1 after 2 layers: 1e-5 is about a hundred rounding errors.
            assert torch.allclose(torch.tensor(rollout.logprobs).double(), expected, atol=1e-5)
            if temperature == 0:  # it repeats tokens, which no penalty of the model's folder keeps from it
                assert rollout.tokens == model_logits(model, prompt, rollout).argmax(-1).tolist()


def test_a_rollout_ends_at_its_first_stop_token_or_at_the_limit(engine: Engine, model: Qwen2ForCausalLM) -> None:
    rollouts = engine(model).generate(PROMPTS * 4, Sampling(n=4, max_tokens=9), seed=0)
    reasons = set()
    for rollout in [rollout for group in rollouts for rollout in group]:
        stops = [place for place, token in enumerate(rollout.tokens) if token in (STOP, OTHER_STOP)]
        assert len(rollout.logprobs) == len(rollout.tokens)
        if rollout.finish_reason == "stop":
            assert stops == [len(rollout.tokens) - 1]
        else:
            assert not stops
            assert len(rollout.tokens) == 9
        reasons.add(rollout.finish_reason)
    assert reasons == {"stop", "length"}


def test_rollouts_depend_on_the_seed_and_the_global_random_state_is_kept(
    engine: Engine, model: Qwen2ForCausalLM
) -> None:
    sampling = Sampling(n=2, max_tokens=8)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = engine(model).generate(PROMPTS, sampling, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert engine(model).generate(PROMPTS, sampling, seed=5) == first
    assert engine(model).generate(PROMPTS, sampling, seed=6) != first


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8)])
def test_sampling_follows_the_distribution(engine: Engine, temperature: float, top_p: float) -> None:
    """Of 120 tokens, more than transformers' default of top_k, whatever the model's folder has for sampling."""
    model = tiny(120)
    model.lm_head.weight.data *= 10  # else all tokens are about as likely
    model.generation_config.update(temperature=0.3, top_k=9, top_p=0.5, min_p=0.2, repetition_penalty=0.2)
    draws, prompt = 1000, [5, 6, 7, 8]
    sampling = Sampling(n=draws, max_tokens=1, temperature=temperature, top_p=top_p)
    rollouts = engine(model, batch_size=500).generate([prompt], sampling, seed=0)[0]
    counts = torch.bincount(torch.tensor([rollout.tokens[0] for rollout in rollouts]), minlength=120).double()
    with torch.no_grad():
        shares = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
    ordered = shares.sort(descending=True)
    kept = ordered.indices[ordered.values.cumsum(0) - ordered.values < top_p]  # the fewest that reach top_p
    assert counts.sum() == counts[kept].sum()
    expected = shares[kept] / shares[kept].sum() * draws
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum().item()
    freedom = len(kept) - 1
    assert freedom > 50 or top_p < 1
    # 99.9% quantile by Wilson and Hilferty's approximation; the seed is fixed
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert model.generation_config.top_k == 9


def test_a_model_that_has_diverged_is_named(engine: Engine) -> None:
    diverged = tiny(17)
    diverged.get_output_embeddings().weight.data.fill_(math.nan)
    with pytest.raises(HptError, match=r"the model's probabilities are not finite\. Training has diverged"):
        engine(diverged).generate(PROMPTS, Sampling(2, 4), seed=0)


def test_generation_keeps_the_training_mode_of_the_model(engine: Engine, model: Qwen2ForCausalLM) -> None:
    model.train()
    engine(model).generate([[4]], Sampling(n=1, max_tokens=2), seed=0)
    assert model.training
    model.eval()


def test_continuous_batches_hand_over_each_rollout_once_and_follow_the_weights(model: Qwen2ForCausalLM) -> None:
    continuous = ContinuousEngine(model, stop_ids=[STOP, OTHER_STOP], batch_size=3)
    sampling = Sampling(n=4, max_tokens=70)  # longer than a page of the cache
    finished: dict[tuple[int, int], Rollout] = {}

    def note(index: int, number: int, rollout: Rollout) -> None:
        assert (index, number) not in finished
        finished[index, number] = rollout

    rollouts = continuous.generate(PROMPTS, sampling, 3, note)
    assert finished == {(i, j): each for i, group in enumerate(rollouts) for j, each in enumerate(group)}
    assert len(finished) == 16
    assert continuous.generate([], sampling, 3) == []
    with torch.no_grad():
        model.lm_head.weight.neg_()
    changed = continuous.generate(PROMPTS, sampling, 3)
    for prompt, group in zip(PROMPTS, changed, strict=True):
        for rollout in group:
            found = torch.tensor(rollout.logprobs).double()
            assert torch.allclose(found, model_logprobs(model, prompt, rollout, 1.0), atol=1e-5)
    with torch.no_grad():
        model.lm_head.weight.neg_()


def test_a_failure_in_a_continuous_batch_is_raised(model: Qwen2ForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("a broken layer")

    monkeypatch.setattr(model.model.layers[1], "forward", broken)
    with pytest.raises(RolloutError, match="continuous batching has failed: a broken layer"):
        ContinuousEngine(model, stop_ids=[STOP], batch_size=3).generate(PROMPTS, Sampling(n=2, max_tokens=4), 0)
