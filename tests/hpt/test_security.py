"""The promises of docs/security.md that no other test holds, and that every test it names exists."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import byte_level, question

from hpt.commands.main import main
from hpt.config.recipe import load_config, parse_override
from hpt.config.sections.data import PromptConfig
from hpt.config.sections.model import ModelConfig
from hpt.data.prompt import PromptRenderer
from hpt.data.tokenizer import load_tokenizer
from hpt.model.loading import load_model
from hpt.report.runs import load_runs
from hpt.support.errors import ConfigError, DataError, HptError
from hpt.training.checkpoint import load_state

ROOT = Path(__file__).parents[2]
HOSTILE = "../../elsewhere/\x1b[2J[/red]<script>"


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) == page.count("`tests/") > 15
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_yaml_makes_no_objects(world: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    call = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{made}]]"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(world.read_text() + f"\nseed: {call}\n")
    with pytest.raises(ConfigError, match="is not valid YAML: could not determine a constructor"):
        load_config(recipe)
    parse_override(f"seed={call}")
    (tmp_path / "config.yaml").write_text(f"seed: {call}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(HptError, match="cannot be read: could not determine a constructor"):
        load_runs([tmp_path])
    assert not made.exists()


def test_a_state_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "made",)

    checkpoint = tmp_path / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    for write in (torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, protocol=2))):
        write({"step": Touch()}, checkpoint / "trainer_state.pt")
        with pytest.raises(HptError):
            load_state(checkpoint)
    assert not (tmp_path / "made").exists()


def test_code_in_a_models_folder_is_not_run(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(world.parent / "model", folder)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Own: pass\n")
    automatic = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    for name, own in (("config.json", {"model_type": "own"}), ("tokenizer_config.json", {"tokenizer_class": "Own"})):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | own | {"auto_map": automatic}))
    with pytest.raises(HptError):
        load_model(str(folder), ModelConfig(path=str(folder)), torch.device("cpu"))
    with pytest.raises(HptError):
        load_tokenizer(str(folder))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "expression",
    ["''.__class__.__mro__[1].__subclasses__()", "messages.append(1)", "''.__class__.__init__.__globals__['os']"],
)
def test_a_chat_template_reaches_no_python(expression: str) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = byte_level(f"{{{{ {expression} }}}}{template}", "<|im_end|>", None, ("<|im_start|>", "<|im_end|>"))
    with pytest.raises((DataError, ConfigError), match=r"unsafe|has no|undefined"):
        PromptRenderer(tokenizer, PromptConfig(style="chat")).prompt_ids(question())


def test_what_data_says_names_no_file_and_controls_no_terminal(
    world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = {}
    for name in ("train", "eval"):
        lines = [json.loads(line) for line in (world.parent / f"{name}.jsonl").read_text().splitlines()]
        files[name] = tmp_path / f"{name}.jsonl"
        files[name].write_text(
            "".join(
                json.dumps(line | {"id": HOSTILE + line["id"], "grade": HOSTILE, HOSTILE: HOSTILE}) + "\n"
                for line in lines
            )
        )
    run = tmp_path / "a" / "b" / "run"
    settings = [f"data.{name}={path}" for name, path in files.items()]
    assert main(["train", str(world), *settings, f"output={run}", "steps=1", "eval.every=1", "eval.n=1"]) == 0
    assert main(["data", str(world), *settings]) == 0
    captured = capfd.readouterr()
    shown = HOSTILE.replace("\x1b", "␛")
    assert shown in captured.err
    assert shown in captured.out
    assert "\x1b" not in captured.out + captured.err
    written = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if "elsewhere" in path or "script" in path]
    assert {path.split("/")[0] for path in written} == {"a", "train.jsonl", "eval.jsonl"}
