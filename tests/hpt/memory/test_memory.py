"""The memory plan against the memory that hpt's trainer takes, and its advice for recipes that do not fit."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
import upge
from seven_b import SEVEN_B, seven_b

from bench.commands import memory as bench
from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.sections.model import ModelConfig
from hpt.memory import MemoryPlan, advice_lines, make_plan, training
from hpt.memory.allocations import AllocationTracker
from hpt.memory.components import PHASES, Component
from hpt.memory.meta_model import build_meta_model, measure_parameters, read_architecture
from hpt.memory.plan import _tokens_of_update
from hpt.memory.trace import FLASH, trace_training
from hpt.support.errors import ConfigError, HptError

GIB = 2**30


@pytest.mark.parametrize(
    "case",
    # Each part dominates once; `python -m bench memory` has more. The model of the first has 6 layers, 4 are traced.
    ["fp32, activations", "bf16, loss", "bf16, weights", "checkpointing"],
)
def test_prediction_is_within_a_tenth_of_the_peak(case: str) -> None:
    found = bench.run_case(case)
    for phase, measured in found["measured"].items():
        assert found["predicted"][phase] == pytest.approx(measured, rel=0.1), phase


def test_allocations_are_counted_by_storage() -> None:
    before = torch.zeros(10)
    with AllocationTracker("cpu") as live:
        live.add([before])
        a = torch.zeros(100)
        view = a[10:]
        assert live.current == 40 + 400  # a view takes no memory
        del a
        gc.collect()
        assert live.current == 40 + 400
        b = view + 1
        assert live.current == 40 + 400 + 360
        del view, b
        assert (live.current, live.peak) == (40, 800)
        live.reset_peak()
        torch.empty(10, device="meta")
        assert live.peak == 40


@pytest.mark.parametrize(
    ("path", "parameters"),
    # Sizes as in their model cards and checkpoints.
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
    ],
)
def test_shipped_architectures_have_the_published_size(path: str, parameters: int) -> None:
    settings = ModelConfig(path=path, dtype="bfloat16")
    architecture = read_architecture(settings)
    assert "shipped with hpt" in architecture.source
    memory = measure_parameters(build_meta_model(architecture, settings, FLASH), settings)
    assert memory.count == parameters
    assert memory.weight_bytes == memory.gradient_bytes == 2 * parameters


def test_adapters_follow_peft_and_nf4_leaves_head_and_embeddings() -> None:
    settings = ModelConfig(path="Qwen/Qwen2.5-Math-7B", dtype="bfloat16", lora={"rank": 8}, quantization="nf4")
    memory = measure_parameters(build_meta_model(read_architecture(settings), settings, FLASH), settings)
    d, kv, mlp, layers, vocabulary = 3584, 512, 18944, 28, 152064
    pairs = [(d, d), (d, kv), (d, kv), (d, d), (d, mlp), (d, mlp), (mlp, d)]
    assert memory.adapter_count == layers * sum(8 * (a + b) for a, b in pairs)
    assert memory.gradient_bytes == 2 * memory.adapter_count
    linear = layers * sum(a * b for a, b in pairs)
    others = 2 * vocabulary * d + layers * (2 * d + d + 2 * kv) + d  # embeddings, head, norms, biases
    assert memory.frozen_bytes == pytest.approx(2 * others + linear * (0.5 + 1 / 64 + 4 / 16384), rel=1e-6)
    assert memory.dequantized_bytes == 2 * d * mlp


def by_name(plan: MemoryPlan) -> dict[str, Component]:
    return {component.name: component for component in plan.components}


def test_full_training_of_7b_takes_what_its_components_take() -> None:
    plan = make_plan(seven_b("hardware.gpu_memory_gib=80"))
    components = by_name(plan)
    count = 7_615_616_512
    assert (
        components["weights"].update
        == components["gradients"].update
        == components["master weights"].update
        == 2 * count
    )
    assert components["optimizer states"].rollout == 8 * count
    assert components["gradients"].rollout == 0
    # For 16,384 tokens with 3,584 numbers in 16 bits: the inputs of 28 layers, the last norm's float32 input (counts as
    # 2) and its result, and the hidden states that the loss reads.
    saved = components["activations saved for the backward pass"].loss
    assert saved == pytest.approx(32 * 16384 * 3584 * 2, rel=0.01)
    cache = 28 * 2 * 512 * 2 * 8 * 9215  # layers, keys and values, their width, bytes, sequences, positions
    assert components["KV cache of 8 sequences"].rollout == pytest.approx(cache, rel=0.01)
    # Of each of 8 sequences' 152,064 logits: one in 16 bits and five in float32, as in `sampling_bytes`.
    assert components["logits of a decoding step"].rollout == 8 * 152064 * (2 + 5 * 4)
    assert plan.training_peak == max(plan.total(phase) for phase in PHASES[1:])
    assert not plan.fits


def test_a_frozen_head_has_no_sums_of_its_gradient_and_adapters_need_no_reference_model() -> None:
    """With adapters, the model without them is the reference model."""
    plan = make_plan(seven_b("hardware.gpu_memory_gib=80"))
    trace, head = plan.model.trace, plan.model.model.get_output_embeddings().weight

    def parts(*settings: str) -> dict[str, Component]:
        found = training.training_components(
            seven_b("hardware.gpu_memory_gib=80", *settings), plan.hardware, plan.model
        )
        return {component.name: component for component in found}

    loss, reference = "loss: chunk of logits, gradient sums", "reference model of the KL penalty"
    assert parts("loss.kl_coef=0.1")[reference].rollout == 2 * 7_615_616_512
    assert reference not in parts("loss.kl_coef=0.1", "model.lora={rank: 8}")
    trained, frozen = (
        upge.memory_bytes(16384, width=3584, vocabulary=152064, dtype=torch.bfloat16, trains_weight=each)
        for each in (True, False)
    )
    assert parts()[loss].loss == trained
    head.requires_grad_(False)
    try:
        assert parts()[loss].loss == max(frozen, trace.forward - trace.saved) < trained
    finally:
        head.requires_grad_(True)


def test_vllm_divides_weights_and_heads_by_tensor_parallel() -> None:
    settings = ["rollout.vllm.tensor_parallel=2", "data.max_prompt_tokens=1024"]
    plan = make_plan(load_config("qwen2.5-math-7b-8x80gb", settings))
    components = by_name(plan)
    assert components["vLLM: weights"].rollout == 7_615_616_512  # half of 2 bytes each
    sequence = (1024 + 8192) * 28 * 2 * (4 // 2) * 128 * 2  # tokens, layers, keys and values, heads, their size, bytes
    room = components["vLLM: KV cache"].rollout // sequence
    assert f"vLLM has room for {room} sequences of full length at once" in plan.notes


def test_each_ranks_sleeping_weights_are_in_cpu_memory() -> None:
    for level, gpus in ((1, 8), (2, 0)):
        plan = make_plan(load_config("qwen2.5-math-7b-8x80gb", [f"rollout.vllm.sleep_level={level}"]))
        weights = by_name(plan)["vLLM: weights"]
        assert weights.host == gpus * weights.rollout


def test_an_update_has_rollouts_and_the_demonstration_of_a_part_of_the_questions() -> None:
    config = seven_b("batch.questions=5", "batch.updates=2", "rollout.n=4")
    assert _tokens_of_update(config, 10) == 3 * (4 + 1) * 10


def test_the_plan_counts_what_the_run_does_with_eager_attention_and_long_evaluations() -> None:
    name = "qwen2.5-math-1.5b-1x80gb"
    padded = make_plan(load_config(name, ["batch.packing=padded", "model.attention=eager"]), prompt_tokens=512)
    eager = make_plan(load_config(name, ["batch.packing=auto", "model.attention=eager"]), prompt_tokens=512)
    assert eager.training_peak == padded.training_peak
    transformers = ["rollout.engine=transformers", "rollout.top_p=1", "data.eval=held_out.jsonl", "eval.every=5"]
    short = make_plan(load_config(name, [*transformers, "eval.max_tokens=64"]), prompt_tokens=512)
    long = make_plan(load_config(name, [*transformers, "eval.max_tokens=16384"]), prompt_tokens=512)
    assert long.rollout_peak > 1.3 * short.rollout_peak


def test_the_plan_counts_on_flash_attention_only_where_it_is_there_or_asked_for(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["hardware.gpu_memory_gib=8", "model.dtype=bfloat16", "batch.packing=packed"]
    peaks = {}
    for installed, kind in ((False, "auto"), (True, "auto"), (False, "flash_attention_2"), (False, "sdpa")):
        monkeypatch.setattr("hpt.memory.plan.has_flash_attention", lambda installed=installed: installed)
        plan = make_plan(load_config(world, [*asked, f"model.attention={kind}"]))
        peaks[installed, kind] = plan.training_peak
        assert any("flash" in note for note in plan.notes) == ((installed, kind) == (False, "auto"))
    assert peaks[False, "auto"] == peaks[False, "sdpa"] > peaks[True, "auto"] == peaks[False, "flash_attention_2"]


def test_zero_divides_by_the_ranks() -> None:
    count = 7_615_616_512
    eight = ["engine=deepspeed", "hardware.gpus=8", "hardware.gpu_memory_gib=80"]
    for stage, weights, gradients in ((1, 2, 2), (2, 2, 0.25), (3, 0.25, 0.25)):
        components = by_name(make_plan(seven_b(*eight, f"deepspeed.stage={stage}")))
        assert components["weights"].update == pytest.approx(weights * count, rel=1e-6)
        assert components["gradients"].update == pytest.approx(gradients * count, rel=1e-6)
        assert components["optimizer states"].update == pytest.approx(count, rel=1e-6)
        assert components["master weights"].update == pytest.approx(count / 2, rel=1e-6)
    offloaded = make_plan(seven_b(*eight, "deepspeed.stage=3", "deepspeed.offload_optimizer=true"))
    components = by_name(offloaded)
    assert components["optimizer states"].update == 0
    assert offloaded.host == pytest.approx(16 * count, rel=1e-6)


def test_advice_names_changes_that_suffice() -> None:
    config = seven_b("hardware.gpu_memory_gib=78", "hardware.host_memory_gib=200", "rollout.batch_size=16")
    plan = make_plan(config)
    assert not plan.fits
    changes = [line.strip() for line in advice_lines(plan)[1:]]
    assert "optimizer.states=8bit" in changes
    assert "optimizer.offload=true" in changes
    assert "batch.tokens=8192" not in changes
    assert changes.index("optimizer.states=8bit") < changes.index("model.lora={rank: 32}")
    for change in (changes[0], changes[-1]):
        keys = change.replace("{rank: 32}", "{rank:32}").split()
        assert make_plan(
            load_config(
                "demo",
                [
                    *SEVEN_B,
                    "rollout.batch_size=16",
                    "hardware.gpu_memory_gib=78",
                    "hardware.host_memory_gib=200",
                    *(key.replace("{rank:32}", "{rank: 32}") for key in keys),
                ],
            )
        ).fits, change


def test_offload_counts_against_the_cpu_memory() -> None:
    settings = ["hardware.gpu_memory_gib=78", "optimizer.offload=true"]
    assert make_plan(seven_b(*settings, "hardware.host_memory_gib=128")).fits
    assert not make_plan(seven_b(*settings, "hardware.host_memory_gib=48")).fits


def test_vllm_share_too_small_for_one_sequence_is_a_problem() -> None:
    plan = make_plan(
        seven_b(
            "hardware.gpu_memory_gib=78",
            "optimizer.states=8bit",
            "rollout.engine=vllm",
            "rollout.vllm.memory_share=0.2",
        )
    )
    assert not plan.fits
    assert "memory_share" in plan.problems[0]
    assert any("rollout.vllm.memory_share=0.3" in line for line in advice_lines(plan))


def test_vllm_in_4_bits_has_its_own_weights_and_adapters_which_sleep_in_cpu_memory() -> None:
    """Of Qwen2.5-Math-7B, counted by hand: NF4 with float32 scales for the linear layers but the head, the rest in 16
    bits; adapters of rank 24 in the place of 32."""
    name = "qwen2.5-math-7b-1x24gb"
    d, kv, mlp, layers, vocabulary = 3584, 512, 18944, 28, 152064
    pairs = [(d, d), (d, kv), (d, kv), (d, d), (d, mlp), (d, mlp), (mlp, d)]
    linear = layers * sum(a * b for a, b in pairs)
    others = 2 * vocabulary * d + layers * (2 * d + d + 2 * kv) + d  # embeddings, head, norms, biases
    components = by_name(make_plan(load_config(name, ["model.lora.rank=24"])))
    weights, adapters = components["vLLM: weights"], components["vLLM: adapters"]
    assert weights.rollout == weights.host == pytest.approx(linear * (0.5 + 4 / 64) + 2 * others, rel=1e-6)
    assert adapters.rollout == adapters.host == 2 * layers * sum(32 * (a + b) for a, b in pairs)
    assert weights.backward == adapters.backward == 0
    share = 0.65 * 22 * GIB
    assert sum(part.rollout for key, part in components.items() if key.startswith("vLLM")) == pytest.approx(share)
    in_16_bits = by_name(make_plan(load_config(name, ["rollout.vllm.quantization=null"])))["vLLM: weights"]
    assert in_16_bits.rollout == 2 * (linear + others)
    merged = by_name(make_plan(load_config("qwen2.5-math-7b-1x48gb", ["rollout.vllm.adapters=merged"])))
    assert "vLLM: adapters" not in merged


def test_advice_puts_vllms_weights_into_4_bits() -> None:
    in_16_bits = ["rollout.vllm.quantization=null", "rollout.vllm.adapters=merged", "rollout.vllm.sleep_level=2"]
    plan = make_plan(load_config("qwen2.5-math-7b-1x24gb", in_16_bits))
    assert not plan.fits
    change = "rollout.vllm.quantization=nf4 rollout.vllm.adapters=lora rollout.vllm.sleep_level=1"
    assert change in map(str.strip, advice_lines(plan))


@pytest.mark.parametrize("settings", [{}, {"lora": {"rank": 8}}])
def test_a_short_model_predicts_a_deep_one(settings: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(path="Qwen/Qwen2.5-Math-1.5B", dtype="bfloat16", gradient_checkpointing=True, **settings)
    short = training.TrainedModel.of(model, 1, 2048, FLASH).trace
    whole = trace_training(build_meta_model(read_architecture(model), model, FLASH), 1, 2048)
    assert short.saved == whole.saved
    assert short.forward == whole.forward
    # The gradient of the embedding comes last, when the upper layers are done; the short model overlaps it with theirs.
    assert whole.backward <= short.backward <= 1.35 * whole.backward


def test_a_recipe_made_too_large_is_refused_with_advice() -> None:
    plan = make_plan(
        load_config("qwen2.5-math-7b-1x80gb", ["optimizer.states=float32", "hardware.host_memory_gib=200"])
    )
    assert not plan.fits
    advice = [line.strip() for line in advice_lines(plan)]
    assert "optimizer.states=8bit" in advice
    assert "model.gradient_checkpointing=offload" not in advice


def test_recipes_extend_each_other_but_not_in_a_circle(tmp_path: Path) -> None:
    config = load_config("llama-3.1-8b-1x24gb")
    assert config.optimizer.lr == 5e-5  # from the recipe
    assert config.optimizer.skip_grad_norm == 80  # from the recipe that it extends
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {tmp_path / other}.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "a.yaml")


def test_unknown_model_is_named() -> None:
    with pytest.raises(HptError, match="nowhere-at-all"):
        make_plan(seven_b("model.path=./nowhere-at-all"))


def test_a_model_that_prepare_has_not_made_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "demo", f"output={tmp_path / 'run'}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "does not exist yet" in error
    assert "hpt.demos.demo:prepare" in error


def test_the_command_prints_a_table_and_says_by_exit_code_whether_it_fits(
    capsys: pytest.CaptureFixture[str], world: Path
) -> None:
    small = ["hardware.gpu_memory_gib=4"]
    assert main(["plan", str(world), *small]) == 0
    shown = capsys.readouterr().out
    assert "optimizer states" in shown
    assert "fits into 4.0 GiB" in shown
    assert main(["plan", str(world), "hardware.gpu_memory_gib=0.5"]) == 1  # less than CUDA's context
    assert "does NOT fit" in capsys.readouterr().out


@pytest.mark.parametrize("memory", ["gpu_memory_gib=0.5", "host_memory_gib=1e-6"])
def test_train_refuses_what_cannot_fit_unless_told(
    capsys: pytest.CaptureFixture[str], world: Path, tmp_path: Path, memory: str
) -> None:
    settings = [f"output={tmp_path / 'run'}", f"hardware.{memory}", "steps=1", "eval.every=0"]
    assert main(["train", str(world), *settings]) == 2
    shown = capsys.readouterr().err
    assert "hardware.check=false" in shown
    assert "optimizer states" in shown  # the table comes first
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert main(["train", str(world), *settings, "hardware.check=false"]) == 0
