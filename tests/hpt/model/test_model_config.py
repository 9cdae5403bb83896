"""`model.config`: changed fields of a model's config.json in the trainer, vLLM, the plan and checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedModel

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.config.sections.model import ModelConfig
from hpt.memory.meta_model import build_meta_model, read_architecture
from hpt.memory.plan import make_plan
from hpt.memory.trace import FLASH
from hpt.model.adapters import holds_adapters
from hpt.model.loading import load_model, load_policy, save_model
from hpt.model.positions import check_positions
from hpt.records.checkpoints import checkpoints
from hpt.rollout.vllm.arguments import EngineSettings, engine_arguments
from hpt.rollout.vllm.identity import model_name
from hpt.support.errors import ConfigError, HptError
from hpt.support.model_config import read_model_config

CPU = torch.device("cpu")
FIELDS = {"max_position_embeddings": 128, "rope_theta": 50.0}
ASKED = "model.config={max_position_embeddings: 128, rope_theta: 50.0}"
IDS = torch.arange(2, 20)[None]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS, use_cache=False).logits


def copy_with(folder: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a model's folder whose config.json `change` has edited."""
    shutil.copytree(folder, to)
    content = json.loads((to / "config.json").read_text())
    change(content)
    (to / "config.json").write_text(json.dumps(content))
    return to


def in_old_layout(content: dict[str, Any]) -> None:
    """As transformers 4 wrote config.json."""
    content["rope_theta"] = content.pop("rope_parameters")["rope_theta"]


@pytest.mark.parametrize("old_layout", [True, False])
def test_a_changed_field_is_as_good_as_an_edited_config(world: Path, tmp_path: Path, old_layout: bool) -> None:
    start = copy_with(world.parent / "model", tmp_path / "start", in_old_layout if old_layout else lambda content: None)
    edited = copy_with(start, tmp_path / "edited", lambda content: None)
    content = json.loads((edited / "config.json").read_text())
    (content if old_layout else content["rope_parameters"])["rope_theta"] = 50.0
    (edited / "config.json").write_text(json.dumps(content | {"max_position_embeddings": 128}))
    unchanged, expected = (load_model(str(path), ModelConfig(path=str(path)), CPU) for path in (start, edited))
    for fields in (FIELDS, {"max_position_embeddings": 128, "rope_parameters": {"rope_theta": 50.0}}):
        model = load_model(str(start), ModelConfig(path=str(start), config=fields), CPU)
        assert torch.equal(model.model.rotary_emb.inv_freq, expected.model.rotary_emb.inv_freq)
        assert torch.equal(logits(model), logits(expected))
        assert model.config.max_position_embeddings == 128
        assert not torch.equal(model.model.rotary_emb.inv_freq, unchanged.model.rotary_emb.inv_freq)
        assert not torch.allclose(logits(model), logits(unchanged), atol=1e-4)


def test_a_scaling_of_rotary_embeddings_keeps_their_base(world: Path) -> None:
    path = str(world.parent / "model")
    base = read_model_config(path).rope_parameters["rope_theta"]
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    changed = read_model_config(path, {"rope_scaling": yarn}).rope_parameters
    assert (changed["rope_type"], changed["factor"], changed["rope_theta"]) == ("yarn", 4.0, base)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_positon_embeddings": 128}, ["model.config.max_positon_embeddings", "'max_position_embeddings'"]),
        ({"zzz": 1}, ["model.config.zzz", "rope_theta"]),  # nothing is close: all fields are named
        ({"max_position_embeddings": "many"}, ["max_position_embeddings", "many", "int"]),
        ({"rope_theta": -1}, ["model.config.rope_theta = -1", "above 0"]),
        ({"rope_theta": True}, ["model.config.rope_theta = True", "number"]),
        ({"rope_scaling": 4}, ["model.config.rope_scaling = 4", "mapping"]),
        ({"dtype": "float16"}, ["model.config.dtype", "model.dtype"]),
        ({"hidden_size": 64}, ["model.config.hidden_size = 64", "32"]),
        ({"num_hidden_layers": 3}, ["model.config.num_hidden_layers = 3", "2"]),
        ({"vocab_size": 100}, ["model.config.vocab_size = 100", "cannot be changed"]),
        ({"tie_word_embeddings": True}, ["model.config.tie_word_embeddings = True", "cannot be changed"]),
    ],
)
def test_a_field_that_cannot_be_changed_is_named(world: Path, fields: dict[str, Any], words: list[str]) -> None:
    settings = ModelConfig(path=str(world.parent / "model"), config=fields)
    readers: list[Callable[[], object]] = [
        lambda: check_positions(settings, {}),  # before any model is loaded
        lambda: read_architecture(settings),
        lambda: load_model(settings.path, settings, CPU),
    ]
    for read in readers:
        with pytest.raises(ConfigError) as error:
            read()
        assert all(word in str(error.value) for word in words), error.value


def test_rotary_embeddings_by_layer_type_need_the_type(tmp_path: Path) -> None:
    Gemma3TextConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"full_attention, sliding_attention.*rope_parameters=\{full_attention"):
        read_model_config(str(tmp_path), {"rope_theta": 5.0})
    changed = read_model_config(str(tmp_path), {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}})
    before = read_model_config(str(tmp_path)).rope_parameters
    assert changed.rope_parameters["full_attention"] == before["full_attention"] | {"rope_theta": 5.0}
    assert changed.rope_parameters["sliding_attention"] == before["sliding_attention"]


def test_weights_that_do_not_fit_are_never_replaced_by_random_ones(world: Path, tmp_path: Path) -> None:
    folder = world.parent / "model"
    deeper = copy_with(
        folder, tmp_path / "deeper", lambda content: content.update(num_hidden_layers=3, layer_types=None)
    )
    with pytest.raises(HptError, match=r"it has no model\.layers\.2\..* and \d+ more"):
        load_model(str(deeper), ModelConfig(path=str(deeper)), CPU)
    wider = copy_with(folder, tmp_path / "wider", lambda content: content.update(intermediate_size=96))
    with pytest.raises(HptError, match=r"other shapes have model\.layers\.0\.mlp"):
        load_model(str(wider), ModelConfig(path=str(wider)), CPU)
    more = copy_with(folder, tmp_path / "more", lambda content: None)
    save_file(load_file(more / "model.safetensors") | {"extra.weight": torch.zeros(1)}, more / "model.safetensors")
    load_model(str(more), ModelConfig(path=str(more)), CPU)  # a weight too many may be a habit of the model's authors
    with pytest.raises(HptError, match=r"there is no place for extra\.weight"):
        load_model(str(more), ModelConfig(path=str(more), config=FIELDS), CPU)


def test_the_plan_knows_the_changed_positions(world: Path) -> None:
    asked = ["rollout.max_tokens=100", "data.max_prompt_tokens=8", "hardware.gpu_memory_gib=8"]
    few, enough = (make_plan(load_config(world, [*asked, *more])) for more in ([], [ASKED]))
    assert any("108 tokens; the model has 64 positions" in note for note in few.notes)
    assert not any("positions" in note for note in enough.notes)
    settings = load_config(world, [ASKED]).model
    meta = build_meta_model(read_architecture(settings), settings, FLASH)
    assert meta.config.rope_parameters["rope_theta"] == 50.0


@pytest.mark.parametrize("name", ["qwen2.5-math-1.5b-1x24gb", "qwen2.5-math-7b-1x80gb"])
def test_the_papers_recipes_have_room_for_8192_tokens(name: str) -> None:
    config = load_config(name)
    architecture = read_architecture(config.model)
    assert architecture.config.max_position_embeddings == 16384 >= config.data.max_prompt_tokens + 8192
    assert architecture.config.rope_parameters["rope_theta"] == 40000


def test_another_model_drops_the_fields_and_a_local_copy_keeps_them() -> None:
    name, asked = "qwen2.5-math-7b-1x80gb", "model.config.rope_theta=7"
    assert load_config(name, ["model.path=Qwen/Qwen2.5-7B"]).model.config is None
    kept = load_config(name, ["model.path=/models/Qwen2.5-Math-7B"]).model.config
    assert kept == {"max_position_embeddings": 16384, "rope_theta": 40000}
    for order in ([asked, "model.path=Qwen/Qwen2.5-7B"], ["model.path=Qwen/Qwen2.5-7B", asked]):
        assert load_config(name, order).model.config == {"rope_theta": 7}


def test_vllm_gets_whole_entries(world: Path) -> None:
    """transformers has moved rope_theta into rope_parameters: vLLM would keep the old one there beside a new one."""
    arguments = engine_arguments(EngineSettings.of_run(load_config(world, [ASKED]), CPU, 16))
    assert arguments["hf_overrides"] == {
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
    }
    assert "hf_overrides" not in engine_arguments(EngineSettings.of_run(load_config(world), CPU, 16))
    with pytest.raises(ConfigError, match=r"model\.config and rollout\.vllm\.options\.hf_overrides"):
        load_config(world, [ASKED, "rollout.engine=vllm", "rollout.vllm.options={hf_overrides: {}}"])


def test_a_server_with_other_fields_is_another_model(world: Path) -> None:
    names = {model_name(load_config(world, settings)) for settings in ([], [ASKED], ["model.dtype=bfloat16"])}
    assert len(names) == 2  # the type of the weights is not the model's


def test_checkpoints_carry_the_fields_and_a_resumed_run_is_bit_exact(
    world: Path, tmp_path: Path, metrics_of: Callable[[Path], list[dict[str, Any]]]
) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    asked = [ASKED, "steps=2", "eval.every=0", "checkpoint.every=1"]
    assert main(["train", str(world), f"output={run}", *asked]) == 0
    _, last = checkpoints(run)
    content = json.loads((last / "config.json").read_text())
    assert (content["max_position_embeddings"], content["rope_parameters"]["rope_theta"]) == (128, 50.0)
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / last.name)
    assert main(["train", "--resume", str(again)]) == 0
    assert metrics_of(again) == metrics_of(run)
    one, other = (load_file(checkpoints(folder)[-1] / "model.safetensors") for folder in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Whoever reads a checkpoint needs no recipe: the fields are in its config.
    trained = load_policy(load_config(world, [ASKED]), last, CPU)
    assert torch.equal(logits(load_model(str(last), ModelConfig(path=str(last)), CPU)), logits(trained))


def test_adapters_carry_the_fields_to_their_merged_model(world: Path, tmp_path: Path) -> None:
    config = load_config(world, [ASKED, "model.lora={rank: 4}"])
    model = load_policy(config, None, CPU)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000001"
    save_model(model, checkpoint)
    shutil.copy(world.parent / "model" / "tokenizer.json", checkpoint)
    shutil.copy(world.parent / "model" / "tokenizer_config.json", checkpoint)
    assert holds_adapters(checkpoint)
    expected = logits(model)
    assert torch.allclose(logits(load_policy(config, checkpoint, CPU)), expected)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "exported")]) == 0
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "exported")), expected, atol=1e-5)
