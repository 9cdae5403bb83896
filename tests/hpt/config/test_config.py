"""Recipes: layers, overrides, and messages that name the field, the value and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from hpt.config.other_trainers import SAME_HERE
from hpt.config.recipe import load_config, shipped_methods, shipped_recipes
from hpt.config.schema import Config
from hpt.config.stages import stages_of
from hpt.config.words import describe_settings
from hpt.support.errors import ConfigError

MINIMAL = {"output": "runs/test", "steps": 3, "model": {"path": "a"}, "data": {"train": "t.jsonl", "eval": "e.jsonl"}}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def message(recipe: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(recipe, overrides)
    return str(error.value)


def test_every_shipped_recipe_is_valid_with_every_shipped_method() -> None:
    assert {"demo", "smollm2"} <= set(shipped_recipes())
    assert {"hpt", "grpo", "sft"} <= set(shipped_methods())
    for name in shipped_recipes():
        for method in shipped_methods():
            if method == "ppo" and ("published" in name or name.endswith(("24gb", "48gb", "8x80gb"))):
                assert 'rl.advantage "gae"' in message(Path(name), "method=ppo")  # no critic beside adapters or ZeRO
                continue
            config = load_config(name, [f"method={method}"])
            assert config.method == method
            assert config.gate.kind == {"hpt": "switch", "grpo": "rl", "sft": "sft"}.get(method, config.gate.kind)
            assert stages_of(load_config(name, [f"method={method}", "steps=4"]))[-1].last == 4  # below its warm-up, too


def test_the_written_config_is_complete_and_reads_back_as_itself(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe, ["method=grpo", "optimizer.lr=3e-5", "rl.options={clip_low: 0.1, clip_high: 0.3}"])
    written = tmp_path / "config.yaml"
    written.write_text(config.to_yaml())
    assert load_config(written) == config
    assert set(yaml.safe_load(written.read_text())) == set(Config.model_fields)


def test_layers_in_order(recipe: Path) -> None:
    recipe.write_text(yaml.safe_dump(MINIMAL | {"method": "grpo", "rl": {"coef": 0.5}, "seed": 3}))
    config = load_config(recipe, ["seed=4"])
    assert (config.gate.kind, config.rl.objective, config.rl.coef, config.seed) == ("rl", "GRPO", 0.5, 4)
    # A method chosen on the command line wins over the recipe's; settings given beside it win over both.
    chosen = load_config(recipe, ["gate.gamma=2", "method=hpt"])
    assert (chosen.gate.kind, chosen.gate.gamma, chosen.rl.objective, chosen.rl.options) == (
        "switch",
        2,
        "REINFORCE",
        {},
    )


def test_output_and_seed_are_filled_in(recipe: Path) -> None:
    config = load_config(recipe, ["data.train={output}/data-{seed}.jsonl", "seed=7", "output=here"])
    assert config.data.train == "here/data-7.jsonl"


def test_text_with_colons_and_braces_stays_text(recipe: Path) -> None:
    template = r"Question: {question} Answer: \boxed{}"
    assert load_config(recipe, [f"prompt.template={template}"]).prompt.template == template
    assert load_config(recipe, ["prompt.template={question} ?"]).prompt.template == "{question} ?"


def test_numbers_as_people_write_them(recipe: Path) -> None:
    assert load_config(recipe, ["optimizer.lr=5e-6"]).optimizer.lr == 5e-6  # YAML reads 5e-6 as a string
    assert isinstance(load_config(recipe, ["gate.gamma=2"]).gate.gamma, int)
    assert isinstance(load_config(recipe, ["gate.gamma=0.25"]).gate.gamma, float)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rolout.n=4", ["rolout", "did you mean 'rollout'", "optimizer"]),
        ("optimizer.speed=1", ["optimizer.speed", "known here: lr, betas"]),
        (
            "optimizer.learning_rate=1",
            ["no such setting; did you mean optimizer.lr?"],
        ),
        ("reward_funcs=a:f", ["reward_funcs: there is no such setting; did you mean rewards?"]),
        ("logging_steps=1", ["every step is logged"]),
        ("vllm_mode=server", ["did you mean a setting in rollout.vllm?"]),
        ("temperature=1", ["did you mean rollout.temperature or eval.temperature?"]),
        ("optimizer=1e-4", ["optimizer = '1e-4': should be a mapping, such as {lr: ...}; it may have lr, betas"]),
        ("gate=rl", ["gate = 'rl': should be a mapping, such as {kind: ...}"]),
        ("track=3", ["track.to = 3: should be a list"]),
        ("data=3", ["data.train = 3: should be a name, or a list"]),
        (
            "gate.table=3",
            ["gate.table = 3: input should be 'soft-1',", "gate.table = 3: should be a list"],
        ),
        ("optimizer.lr=fast", ["optimizer.lr = 'fast'", "valid number"]),
        ("optimizer.lr=-1", ["optimizer.lr = -1", "greater than 0"]),
        ("optimizer.lr=.inf", ["optimizer.lr", "finite"]),
        ("output=''", ["output = '': must be the path of a folder"]),
        (r'output="a\0b"', [r"output = 'a\x00b': must be the path of a folder"]),
        ("steps=0", ["steps = 0", "greater than or equal to 1"]),
        ("steps=2.5", ["steps = 2.5", "integer"]),
        ("steps", ["'steps'", "key=value"]),
        ("steps=[", ["steps=[", "not valid YAML"]),
        ("rollout.engine=sglang", ["rollout.engine = 'sglang'", "transformers"]),
        ("method=grppo", ["'grppo'", "did you mean 'grpo'", "hpt"]),
        ("rl.objective=PPPO", ["rl.objective = 'PPPO'", "'PPO'", "'GRPO'"]),
        ("rl.options={clip_hi: 1}", ["rl.options: rl.objective REINFORCE has no 'clip_hi'; allowed: none"]),
        ("rl={objective: PPO, options: {clip_hi: 1}}", ["has no 'clip_hi'; allowed: clip_low, clip_high, dual_clip"]),
        ("rl={objective: PPO, options: {clip_low: -1}}", ["rl.options = {'clip_low': -1.0} do not fit"]),
        ("seed=true", ["seed = True", "should be a number"]),
        ("rollout.n=yes", ["rollout.n = True", "should be a number"]),
        ("optimizer.lr=false", ["optimizer.lr = False", "should be a number"]),
        ("threads=true", ["threads = True", "should be a number"]),
        ("gate.gamma=true", ["gate.gamma = True", "should be a number"]),
        ("rollout.n=1", ["rollout.n = 1", "rl.advantage", "n >= 2"]),
        ("rollout={batching: continuous, top_p: 0.9}", ["rollout.batching", "rollout.top_p = 0.9"]),
        ("rollout={batching: continuous, engine: vllm}", ["rollout.batching", 'it is "vllm"']),
        ("gate.gamma=8", ["gate.gamma = 8", "rollout.n = 8"]),
        ("gate.gamma=1.0", ["gate.gamma = 1.0", "below 1.0"]),
        ("gate.kind=function", ["gate.function"]),
        ("gate.function=a:b", ["gate.function", '"switch"']),
        ("verify.function=reward", ["verify.function = 'reward'", "module:function"]),
        ("batch.updates=1000", ["batch.updates = 1000", "batch.questions = 128"]),
        ("prompt.template=Q", ["template", "{question}"]),
        ("model=7", ["model.path = 7"]),
        ("lora=true", ["lora: there is no such setting; did you mean model.lora?"]),
        ("lr=1e-5", ["did you mean critic.lr or optimizer.lr?"]),
        ("rollout.n=65537", ["rollout.n = 65537", "less than or equal to 65536"]),
        ("rollout.max_tokens=99999999999999999999", ["less than or equal to 16777216"]),
        ("sft.coef=1e39", ["sft.coef", "less than or equal to 1000000"]),
        ("loss.kl_coef=2e6", ["loss.kl_coef", "less than or equal to 1000000"]),
        ("verify.timeout=1e300", ["verify.timeout", "less than or equal to 1000000"]),
        ("hardware.host_memory_gib=1e300", ["hardware.host_memory_gib", "less than or equal to 1000000"]),
        ("optimizer.lr=11", ["optimizer.lr = 11", "less than or equal to 10"]),
        ("model.attention=flash", ["model.attention = 'flash'", "'kernels-community/flash-attn2'"]),
    ],
)
def test_mistakes_are_named(recipe: Path, override: str, expected: list[str]) -> None:
    text = message(recipe, override)
    assert all(part in text for part in expected), text


def test_names_of_other_trainers_lead_to_settings_that_exist() -> None:
    known = {line.split()[0] for line in describe_settings().splitlines()}
    sections = {key.rpartition(".")[0] for key in known} | {key.partition(".")[0] for key in known}
    for advice in SAME_HERE.values():
        for key in re.split(r", | or ", advice):
            assert key in known | sections or key.startswith("rl.options."), key


def test_known_settings_are_listed_once(recipe: Path) -> None:
    text = message(recipe, "xyz=1", "zzz=2", "optimizer.xyz=3", "optimizer.zzz=4")
    assert text.count("known here: lr, betas") == text.count("known here: output") == text.count("known here") / 2 == 1
    assert text.endswith("  zzz: there is no such setting")


def test_several_mistakes_in_one_message(recipe: Path) -> None:
    text = message(recipe, "steps=0", "seed=-1", "batch.tokens=x")
    assert all(part in text for part in ("steps = 0", "seed = -1", "batch.tokens = 'x'")), text


def test_missing_settings_and_files(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 3\n")
    text = message(path)
    assert all(f"{key}: is required and missing" in text for key in ("output", "model", "data")), text
    path.write_text("- a list")
    assert "mapping" in message(path)
    path.write_text("steps: [1")
    assert "not valid YAML" in message(path)
    assert "did you mean 'demo'" in message(Path("dmo"))


def test_eval_needs_its_file(recipe: Path) -> None:
    assert "data.eval" in message(recipe, "eval.every=5", "data.eval=null")


def test_help_lists_every_setting() -> None:
    text = describe_settings()
    for key in ("rollout.temperature", "optimizer.skip_grad_norm", "batch.packing", "output"):
        assert key in text
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert "tensorboard | trackio | wandb" in lines["track.to"]
    assert {"model.lora", "model.lora.rank", "model.lora.alpha", "rl.overlong.cache"} <= lines.keys()
    assert "sdpa" in lines["model.attention"]
    assert "auto | true | false" in lines["model.liger"]
    assert "|" not in lines["verify.boxed"]


@pytest.mark.parametrize(
    ("setting", "scale"),
    [("true", 2.0), ("{}", 2.0), ("{rank: 8}", 2.0), ("{rank: 8, alpha: 8}", 1.0), ("{alpha: 64}", 2.0)],
)
def test_alpha_follows_the_rank_unless_it_is_given(recipe: Path, setting: str, scale: float) -> None:
    lora = load_config(recipe, [f"model.lora={setting}"]).model.lora
    assert lora is not None
    assert lora.numerator / lora.rank == scale
    assert load_config(recipe, ["model.lora=false"]).model.lora is None


@pytest.mark.parametrize(
    ("settings", "cpu", "gpu"),
    [
        ([], False, True),
        (["model.attention=eager"], False, False),  # eager attention lets packed rows see each other
        (["batch.packing=padded"], False, False),
        (["batch.packing=packed"], True, True),
    ],
)
def test_rows_are_packed_where_the_device_and_the_attention_allow_it(
    recipe: Path, settings: list[str], cpu: bool, gpu: bool
) -> None:
    config = load_config(recipe, settings)
    assert (config.packs_rows("cpu"), config.packs_rows("cuda")) == (cpu, gpu)


def test_the_longest_response_is_an_evaluations_only_where_there_are_evaluations(recipe: Path) -> None:
    tokens = ["rollout.max_tokens=100", "eval.max_tokens=300"]
    assert load_config(recipe, tokens).longest_response == 100
    assert load_config(recipe, [*tokens, "eval.every=5"]).longest_response == 300
    assert load_config(recipe, ["rollout.max_tokens=100", "eval.every=5"]).longest_response == 100
    assert load_config(recipe, ["rollout.max_tokens=100", "eval.max_tokens=30", "eval.every=5"]).longest_response == 100


def test_demonstrations_may_be_as_long_as_rollouts_unless_the_recipe_says(recipe: Path) -> None:
    assert load_config(recipe, ["rollout.max_tokens=100"]).max_demonstration_tokens == 100
    tokens = ["rollout.max_tokens=100", "data.max_demonstration_tokens=40"]
    assert load_config(recipe, tokens).max_demonstration_tokens == 40


# ---- rewards

DIGITS, BRIEF = "my_rewards:digits", "my_rewards:brief"


def test_rewards_are_functions_with_weights(recipe: Path) -> None:
    given = f"rewards=[{DIGITS}, {{function: '{BRIEF}', weight: -0.5}}, verifier]"
    config = load_config(recipe, [given, "gate.reads=digits", "gate.threshold=0.5"])
    assert config.reward_weights == {"digits": 1.0, "brief": -0.5, "verifier": 1.0}
    assert load_config(recipe, [f"rewards={DIGITS}"]).reward_weights == {"digits": 1.0}
    assert load_config(recipe).reward_weights == {}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["rewards=[brief]"], "rewards.0.function = 'brief': should be \"module:function\""),
        (["rewards=3"], 'rewards = 3: rewards are a list of "module:function", {function: '),
        (["rewards=null"], "rewards = None: rewards are a list"),
        ([f"rewards=[{DIGITS}, 0.5]"], "rewards.1 = 0.5: rewards are a list of .* pairs"),
        ([f"rewards=[{{function: '{DIGITS}', wieght: 2}}]"], "rewards.0.wieght: .* did you mean 'weight'"),
        (
            [f"rewards=[{{function: '{DIGITS}', weight: 1e300}}]"],
            "rewards.0.weight = .* less than or equal to 1000000",
        ),
        ([f"rewards=[{{function: '{DIGITS}', weight: .inf}}]"], "rewards.0.weight = inf: "),
        ([f"rewards=[{DIGITS}, 'other:digits']"], "rewards.1.function = 'other:digits': an earlier one is called"),
        (["rewards=['my_rewards:verifier']"], "'verifier' is the verifier's score; rename it"),
        ([f"rewards=[{DIGITS}]", "gate.reads=brief"], "gate.reads = 'brief': allowed are verifier, digits"),
        ([f"rewards=[{DIGITS}]", "gate.reads=digits"], "gate.reads = 'digits' needs gate.threshold"),
        (["gate.threshold=0.5"], "gate.threshold = 0.5 goes with a reward in gate.reads"),
        ([f"rewards=[{DIGITS}]", "method=srft"], 'rl.advantage "sign" asks whether'),
        (["reward_calls.on_error=go"], "reward_calls.on_error = 'go'"),
    ],
)
def test_what_is_wrong_with_rewards_is_named(recipe: Path, settings: list[str], said: str) -> None:
    assert re.search(said, message(recipe, *settings))


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ([], True),
        (["method=sft"], False),
        (["method=grpo"], True),
        (["method=grpo", f"rewards=[{DIGITS}]"], False),
        (["method=grpo", f"rewards=[{DIGITS}, verifier]"], True),
        ([f"rewards=[{DIGITS}]"], True),  # the gate reads it
        ([f"rewards=[{DIGITS}]", "gate.reads=digits", "gate.threshold=1"], False),
        ([f"rewards=[{DIGITS}, verifier]", "gate.reads=digits", "gate.threshold=1"], True),
    ],
)
def test_when_training_asks_the_verifier(recipe: Path, settings: list[str], needed: bool) -> None:
    assert load_config(recipe, settings).needs_answers is needed
