"""The arithmetic of the plan of time, on cases computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.config.sections.model import ModelConfig
from hpt.memory.trace import FLASH, MASKED
from hpt.rollout import Sampling
from hpt.support.cards import CARDS, card_of_device, typical_card
from hpt.timing import cpu
from hpt.timing.generation import Decoder, continuously, in_batches, kv_passes_of_generate, slots_of
from hpt.timing.lengths import mean_under, share_at_limit, spread_lengths
from hpt.timing.machine import ALL_REDUCE, Machine
from hpt.timing.shape import ModelShape
from hpt.timing.training import HOST_BANDWIDTH, Trainer, micro_batch_counts, row_of
from hpt.timing.transfer import MERGING_PASSES, SLEEP_AND_WAKE, sync_seconds

SHAPE = ModelShape(
    layers=2,
    width=10,
    inner=30,
    query_width=10,
    groups=2,
    vocabulary=100,
    body=5000,
    adapters=0,
    trained=6000,
    trains_head=True,
    itemsize=2,
    quantized=False,
    weight_bytes=12_000,
    kv_bytes=40,
)


def machine(**changed: float) -> Machine:
    """No overheads, rates of 1,000 unless `changed`."""
    rates = {
        **dict.fromkeys(("training_flops", "decoding_flops", "bandwidth", "link", "host_link"), 1000.0),
        **dict.fromkeys(
            ("generation_start", "decoding_layer", "decoding_step", "decoding_sequence", "training_layer"), 0.0
        ),
        **dict.fromkeys(("sampling_logit", "loss_logit", "activation"), 0.0),
    }
    return Machine(name="made up", **{"gpus": 1, **rates, **changed})  # type: ignore[arg-type]


def recipe(*settings: str) -> Config:
    return load_config("qwen2.5-math-7b-1x80gb", list(settings))


class Steady(Decoder):
    """Every decoding step takes a second per running response plus a thousandth per token held."""

    def step(self, sequences: int, held: float) -> float:
        return sequences + held / 1000

    def prefill(self, tokens: float) -> float:
        return 0.0


def test_a_decoding_step_reads_weights_and_cache_or_computes() -> None:
    # Weights: (5000 + 1000) * 2 bytes. Cache: 3 tokens of 40 bytes, moved once. Products: 2 * 6000 FLOPs a sequence.
    slow_memory = Decoder(SHAPE, machine(decoding_flops=1e9))
    assert slow_memory.step(4, 3) == pytest.approx(12 + 0.12, rel=1e-3)
    slow_products = Decoder(SHAPE, machine(bandwidth=1e9))
    assert slow_products.step(4, 3) == pytest.approx(48, rel=1e-3)
    assert slow_products.prefill(7) == pytest.approx(2 * 5000 * 7 / 1000)


def test_a_decoding_step_counts_overheads_sampling_and_other_gpus() -> None:
    free = {"decoding_flops": math.inf, "bandwidth": math.inf}
    own = machine(**free, decoding_layer=3.0, decoding_step=1.0, sampling_logit=0.01)
    assert Decoder(SHAPE, own).step(4, 3) == pytest.approx(2 * 3 + 1 + 4 * 100 * 0.01)
    scheduled = machine(**free, decoding_sequence=0.5)
    assert Decoder(SHAPE, scheduled).step(4, 3) == pytest.approx(4 * 0.5)
    # Products of 4 queries with 30 tokens, 10 wide, in two layers, forth and back.
    joint = Decoder(SHAPE, machine(bandwidth=math.inf), joint=True).step(4, 30)
    assert joint - Decoder(SHAPE, machine(bandwidth=math.inf)).step(4, 30) == pytest.approx(4 * 10 * 2 * 4 * 30 / 1000)
    # Two results of a layer, of 4 sequences, 10 wide, in 2 bytes, over the link.
    split = Decoder(SHAPE, machine(**free), gpus=2)
    assert split.step(4, 3) == pytest.approx(2 * 2 * 4 * 10 * 2 / 1000 + 2 * ALL_REDUCE)


def test_overheads_of_continuous_batches_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        """Says what its calls take, in seconds: 2 to start; a step 0.5, 0.3 a layer, 0.01 a sequence, 1e-5 a logit."""

        def __init__(self, model: Any, *, stop_ids: list[int], batch_size: int) -> None:
            self.config = model.config
            assert stop_ids[0] >= self.config.vocab_size, "responses that end early would make steps cheaper"

        def generate(self, prompts: list[list[int]], sampling: Sampling, seed: int) -> float:
            logits = len(prompts) * (self.config.vocab_size - cpu.NARROW)
            step = 0.3 * self.config.num_hidden_layers + 0.5 + 0.01 * len(prompts) + 1e-5 * logits
            return 2 + sampling.max_tokens * step

    monkeypatch.setattr(cpu, "ContinuousEngine", Engine)
    monkeypatch.setattr(cpu, "_best", lambda work, repeats: work())
    found = cpu._continuous_overheads(ModelConfig(path="small", liger=False))
    assert vars(found) == pytest.approx({"start": 2, "layer": 0.3, "step": 0.5, "sequence": 0.01, "logit": 1e-5})


def test_4_bit_weights_are_written_and_read_again_in_16_bits() -> None:
    assert SHAPE.bytes_read(False) == 12_000
    assert SHAPE.bytes_read(True) == pytest.approx(5000 * (0.5 + 1 / 64 + 4 / 16384 + 4) + 2000)


def test_generate_repeats_keys_and_values_of_grouped_heads() -> None:
    assert kv_passes_of_generate(SHAPE) == 7  # concatenated 2, read, written twice, read twice


def test_a_batch_lasts_as_long_as_its_longest_response() -> None:
    decoder = Steady(SHAPE, machine())
    # (4, 2): 4 steps of 2 sequences that hold 2 * (10 + 2) on average; (1,): one step of a sequence, holding 10.5.
    assert in_batches([4, 2, 1], 10, 2, decoder) == pytest.approx(4 * (2 + 0.024) + 1 * (1 + 0.0105))


def test_continuous_batching_takes_a_place_again_at_once() -> None:
    decoder = Steady(SHAPE, machine())
    # Two places. 4 and 2 run for 2 steps, then 4 (2 left) with the 1, then 4 alone (1 left).
    expected = 2 * (2 + (2 * (10 + 1)) / 1000)
    expected += 1 * (2 + ((10 + 2.5) + (10 + 0.5)) / 1000)
    expected += 1 * (1 + (10 + 3.5) / 1000)
    assert continuously([4, 2, 1], 10, 2, decoder) == pytest.approx(expected)
    assert continuously([4, 2, 1], 10, 1, decoder) == pytest.approx(in_batches([4, 2, 1], 10, 1, decoder))


def test_room_in_the_cache_limits_what_runs_at_once() -> None:
    # A running response holds 10 + (16 + 4 + 1) / (2 * 7) = 11.5 tokens.
    assert slots_of([4, 2, 1], 10, 256, 24) == 2
    assert slots_of([4, 2, 1], 10, 256, 10_000) == 3
    assert slots_of([4, 2, 1], 10, 1, math.inf) == 1


@pytest.mark.parametrize(("mean", "limit"), [(500, 2000), (100, 8192), (1500, 2000)])
def test_lengths_have_their_mean_and_tail(mean: int, limit: int) -> None:
    lengths = spread_lengths(4000, mean, limit)
    assert sum(lengths) / len(lengths) == pytest.approx(mean, rel=0.02)
    assert sum(length == limit for length in lengths) / 4000 == pytest.approx(share_at_limit(mean, limit), abs=0.01)
    assert max(lengths) <= limit
    # The same lengths, cut earlier.
    cut = [min(length, limit // 2) for length in lengths]
    assert sum(cut) / len(cut) == pytest.approx(mean_under(mean, limit, limit // 2), rel=0.02)


def test_lengths_near_the_limit_all_reach_it() -> None:
    assert spread_lengths(3, 100, 100) == [100, 100, 100]
    assert mean_under(100, 100, 50) == 50


def test_micro_batches_are_those_of_the_trainer() -> None:
    rows = [row_of(2, length) for length in (8, 4, 4, 2)]
    config = recipe("batch.tokens=16")
    packed, rest = micro_batch_counts(rows, config, gpus=1, packed=True, attention=FLASH)
    assert (packed.tokens, packed.responses, packed.pairs) == (16, 12, (100 + 36) / 2)
    assert (rest.tokens, rest.responses, rest.pairs) == (10, 6, (36 + 16) / 2)
    masked, _ = micro_batch_counts(rows, config, gpus=1, packed=True, attention=MASKED)
    assert masked.pairs == 256
    padded, _, _ = micro_batch_counts(rows, config, gpus=1, packed=False, attention=FLASH)
    assert (padded.tokens, padded.pairs) == (10, 50)
    (first,) = micro_batch_counts(rows, config, gpus=2, packed=True, attention=FLASH)
    assert first.tokens == 10 + 4  # the longest row, then the shortest: the other rank has 12 by then


def test_training_counts_products_attention_and_loss() -> None:
    plain = recipe("model.gradient_checkpointing=false")
    (counts,) = micro_batch_counts([row_of(2, 8)], plain, gpus=1, packed=True, attention=FLASH)
    body, attention, loss = 6 * 5000 * 10, 4 * 10 * 2 * 50 * 3.5, 6 * 1000 * 8
    assert Trainer(plain, SHAPE, machine()).micro_batch(counts) == pytest.approx((body + attention + loss) / 1000)
    again = 2 * 5000 * 10 + 4 * 10 * 2 * 50
    checkpointing = Trainer(recipe(), SHAPE, machine())
    assert checkpointing.micro_batch(counts) == pytest.approx((body + attention + loss + again) / 1000)
    forward = 2 * 5000 * 10 + 4 * 10 * 2 * 50 + 2 * 1000 * 8
    assert checkpointing.forward(counts) == pytest.approx(forward / 1000)


def test_frozen_weights_have_no_gradient_of_their_own() -> None:
    config = recipe("model.lora={rank: 8}", "model.gradient_checkpointing=false")
    shape = ModelShape(**{**vars(SHAPE), "adapters": 300, "trained": 300, "trains_head": False})
    (counts,) = micro_batch_counts([row_of(2, 8)], config, gpus=1, packed=True, attention=FLASH)
    flops = 4 * 5000 * 10 + 6 * 300 * 10 + 4 * 10 * 2 * 50 * 3.5 + 4 * 1000 * 8
    assert Trainer(config, shape, machine()).micro_batch(counts) == pytest.approx(flops / 1000)


def test_zero_3_communicates_beside_what_it_computes() -> None:
    config = load_config("qwen2.5-math-7b-8x80gb")
    (counts,) = micro_batch_counts([row_of(2, 8)], config, gpus=1, packed=True, attention=FLASH)
    trainer = Trainer(config, SHAPE, machine(gpus=4, training_flops=math.inf))
    # Weights gathered twice, gradients reduced: of each, three of four parts come from other ranks.
    assert trainer.micro_batch(counts) == pytest.approx(3 * 12_000 * 3 / 4 / 1000)
    computing = Trainer(config, SHAPE, machine(gpus=4, link=math.inf)).micro_batch(counts)
    assert Trainer(config, SHAPE, machine(gpus=4, link=1e9)).micro_batch(counts) == computing


@pytest.mark.parametrize(
    ("settings", "bytes_moved"),
    [
        # Moments, remainder and weight read and written, the gradient read twice: 2 (8 + 2 + 2) + 2 * 2.
        (["optimizer.states=float32"], 28),
        (["optimizer.states=8bit"], 16),
    ],
)
def test_the_update_moves_states_weights_and_gradients(settings: list[str], bytes_moved: int) -> None:
    assert Trainer(recipe(*settings), SHAPE, machine()).update() == pytest.approx(6000 * bytes_moved / 1000)


def test_offloaded_states_cross_the_link_to_cpu_memory() -> None:
    local = recipe("optimizer.states=float32", "optimizer.offload=true")
    seconds = Trainer(local, SHAPE, machine(host_link=100.0)).update()
    assert seconds == pytest.approx(6000 * (2 * 10 / 100 + 8 / 1000))
    config = load_config("qwen2.5-math-7b-8x80gb", ["deepspeed.offload_optimizer=true"])
    seconds = Trainer(config, SHAPE, machine(gpus=2)).update()
    assert seconds == pytest.approx(3000 * 4 / 1000 + 6000 * 32 / HOST_BANDWIDTH)


def test_weights_reach_vllm_by_a_copy_and_merged_by_more() -> None:
    size = (5000 + 2 * 1000) * 2
    assert sync_seconds(recipe("rollout.vllm.sleep_level=0"), SHAPE, machine()) == pytest.approx(2 * size / 1000)
    level_1 = sync_seconds(recipe("rollout.vllm.sleep_level=1"), SHAPE, machine(host_link=100.0), asleep=5000)
    assert level_1 == pytest.approx(2 * size / 1000 + SLEEP_AND_WAKE + 2 * 5000 / 100)
    merged = recipe("model.lora={rank: 8}", "rollout.vllm.sleep_level=0")
    assert sync_seconds(merged, SHAPE, machine()) == pytest.approx(MERGING_PASSES * size / 1000)
    assert sync_seconds(recipe("rollout.engine=transformers"), SHAPE, machine()) == 0


@pytest.mark.parametrize(
    ("device", "gib", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100-80"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100-40"),
        ("NVIDIA A10G", 22.1, "A10G"),
        ("NVIDIA A10", 22.1, "A10"),
        ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
        ("NVIDIA GeForce RTX 4090", 23.6, "RTX4090"),
        ("NVIDIA RTX A6000", 47.4, "A6000"),
        ("AMD Instinct MI300X", 192.0, None),
    ],
)
def test_a_card_is_known_by_its_name(device: str, gib: float, card: str | None) -> None:
    assert card_of_device(device, gib * 2**30) == card


def test_every_card_that_a_recipe_may_name_has_its_numbers() -> None:
    from typing import get_args

    from hpt.support.cards import CardName

    assert set(CARDS) == set(get_args(CardName))
    assert [typical_card(gib * 2**30) for gib in (22, 44, 78, 140)] == ["RTX4090", "L40S", "H100", "H200"]
    assert typical_card(1e12) == "B200"
