"""`hpt serve`: vLLM's command line for a recipe, its environment, and its key."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.rollout.vllm import serve as serving
from hpt.rollout.vllm.identity import model_name
from hpt.support import vllm_plugin
from hpt.support.errors import ConfigError

ROOT = Path(__file__).parents[3]


def flags_of(words: list[str]) -> dict[str, str]:
    return dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--"))


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return shlex.split(capsys.readouterr().out)


def test_the_command_has_the_recipes_model_and_settings(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        *("rollout.vllm.tensor_parallel=2", "rollout.top_p=0.9", "data.max_prompt_tokens=20", "rollout.max_tokens=30"),
        *("model.config={rope_theta: 50.0}", "rollout.vllm.options={max_num_seqs: 7, enable_prefix_caching: true}"),
    ]
    assert main(["serve", str(world), *settings, "--port", "8123", "--print"]) == 0
    words = printed(capsys)
    config = load_config(world, settings)
    assert words[:4] == ["VLLM_SERVER_DEV_MODE=1", sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert words[4:6] == ["--model", config.model.path]
    at = words.index("--served-model-name")
    assert words[at + 1 : at + 3] == [model_name(config), config.model.path]
    assert words[words.index("--middleware") + 1] == "hpt.rollout.vllm.guard.Guard"
    flags = flags_of(words)
    expected = {
        **{"host": "127.0.0.1", "port": "8123", "tensor-parallel-size": "2", "max-num-seqs": "7"},
        **{"logprobs-mode": "raw_logprobs", "load-format": "dummy", "generation-config": "vllm"},
        **{"max-model-len": "50", "enable-prefix-caching": "", "skip-tokenizer-init": "", "no-enable-sleep-mode": ""},
    }
    assert flags.items() >= expected.items()
    assert json.loads(flags["weight-transfer-config"]) == {"backend": "gloo"}
    assert json.loads(flags["hf-overrides"])["rope_parameters"]["rope_theta"] == 50.0


def test_on_a_gpu_it_is_vllm_serve(world: Path) -> None:
    class Gpu:
        type = "cuda"

    config = load_config(world, ["rollout.engine=vllm", "rollout.vllm.url=http://127.0.0.1:8000"])
    gpu: Any = Gpu()
    command = serving.server_command(config, gpu, "127.0.0.1", 8000)
    assert command[:3] == ["vllm", "serve", config.model.path]
    assert json.loads(flags_of(command)["weight-transfer-config"]) == {"backend": "nccl"}
    assert serving.server_settings(config, gpu) == {"VLLM_SERVER_DEV_MODE": "1"}
    ipc = load_config(world, ["rollout.engine=vllm", "rollout.vllm.weight_transfer=ipc"])
    assert serving.server_settings(ipc, gpu)["VLLM_ALLOW_INSECURE_SERIALIZATION"] == "1"
    with pytest.raises(ConfigError, match="leave the host at 127"):
        serving.server_command(ipc, gpu, "0.0.0.0", 8000)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """The commands, with their environments, that this process would have been replaced by."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def remember(program: str, command: list[str], environment: dict[str, str]) -> None:
        calls.append((command, environment))
        raise SystemExit(0)

    monkeypatch.setattr(os, "execvpe", remember)
    monkeypatch.setattr("hpt.support.optional_packages.installed", lambda package: True)
    return calls


def test_a_key_is_made_where_none_is_set_and_is_in_the_environment_alone(
    world: Path,
    started: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["serve", str(world)])
    [(command, environment)] = started
    key = environment["VLLM_API_KEY"]
    assert len(key) >= 40
    output = capsys.readouterr()
    assert output.out.split()[:2] == ["export", f"VLLM_API_KEY={key}"]
    assert key not in output.err
    assert key not in " ".join(command)
    assert shlex.join(command) in output.err  # so that the user can run it by hand


def test_a_new_key_is_shown_on_a_terminal_only(
    world: Path,
    started: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "")
    assert main(["serve", str(world)]) == 2
    output = capsys.readouterr()
    assert "export VLLM_API_KEY=$(openssl rand -hex 32)" in output.err
    assert not started
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["serve", str(world)])
    key = started[0][1]["VLLM_API_KEY"]
    output = capsys.readouterr()
    assert key in output.err
    assert output.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.path=/no/such/folder"], "model.path = '/no/such/folder': there is no such file or folder"),
        (["rollout.vllm.tensor_parallel=3"], "rollout.vllm.tensor_parallel = 3 must divide the model's 4 attention"),
    ],
)
def test_what_vllm_could_not_serve_is_named(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["serve", str(world), *arguments, "--print"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_that_vllm_does_not_have_are_named_before_it_starts(
    world: Path,
    started: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @dataclasses.dataclass
    class EngineArgs:
        max_num_seqs: int = 8

    def imported() -> None:  # as the real one
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")
    monkeypatch.setattr("hpt.rollout.vllm.arguments.import_vllm", imported)
    names = ("vllm", "vllm.engine", "vllm.engine.arg_utils")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[names[-1]].EngineArgs = EngineArgs  # type: ignore[attr-defined]
    assert main(["serve", str(world), "rollout.vllm.options={max_seqs: 3}"]) == 2
    assert "vLLM has no 'max_seqs'" in capsys.readouterr().err
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(SystemExit):
        main(["serve", str(world), "rollout.vllm.options={max_num_seqs: 3}"])
    assert started[0][1]["VLLM_ENABLE_V1_MULTIPROCESSING"] == "1"


def test_the_command_for_a_gpu_can_be_printed_without_one(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(world), "--host", "::1", "--print", "device=cuda"]) == 0  # a setting after options
    words = printed(capsys)
    assert words[1:3] == ["vllm", "serve"]
    assert flags_of(words)["host"] == "::1"
    if not torch.cuda.is_available():
        assert main(["serve", str(world), "device=cuda"]) == 2
        assert "torch sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "99999", "http"])
def test_a_port_that_is_none_is_refused(world: Path, capsys: pytest.CaptureFixture[str], port: str) -> None:
    with pytest.raises(SystemExit):
        main(["serve", str(world), "--print", "--port", port])
    assert f"must be a port from 1 to 65535, got '{port}'" in capsys.readouterr().err


def test_a_key_of_the_users_is_not_shown(
    world: Path,
    started: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "open-sesame")
    with pytest.raises(SystemExit):
        main(["serve", str(world), "--host", "0.0.0.0"])
    output = capsys.readouterr()
    assert "open-sesame" not in output.out + output.err
    assert "warning: --host 0.0.0.0: other machines reach this server" in output.err
    assert started[0][1]["VLLM_API_KEY"] == "open-sesame"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("node-3", False)],
)
def test_which_hosts_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert serving.is_loopback(host) is loopback


def test_the_plugin_of_vllm_is_named_loads_nothing_and_does_no_harm() -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    assert entry["hpt"] == f"{vllm_plugin.__name__}:{vllm_plugin.register.__name__}"
    code = (
        "import sys; sys.modules['vllm.distributed.weight_transfer.factory'] = None; "
        "from hpt.support.vllm_plugin import register; register(); register(); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "False"


def test_the_commands_settings_are_those_of_a_run_with_a_server(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(world), "rollout.vllm.adapters=lora", "model.lora={rank: 4}", "--print"]) == 2
    assert "merged weights: use rollout.vllm.adapters=merged" in " ".join(capsys.readouterr().err.split())


def test_an_installation_without_the_plugin_is_named(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(world, ["rollout.engine=vllm", "rollout.vllm.url=http://127.0.0.1:8000"])
    serving.check_plugin(config, torch.device("cpu"))
    monkeypatch.setattr(serving, "entry_points", lambda group: ())
    with pytest.raises(ConfigError, match="pip install hpt again"):
        serving.check_plugin(config, torch.device("cpu"))
