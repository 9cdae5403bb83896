"""hpt.commands.main: help of every command, no torch before a command runs, errors as messages and exit codes."""

import subprocess
import sys

import pytest

from hpt.commands import main as module
from hpt.commands.main import COMMANDS, main
from hpt.config.recipe import shipped_methods, shipped_recipes
from hpt.support.errors import HptError


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_lists_every_command(capsys):
    lines = help_of(capsys).splitlines()
    for name, command in COMMANDS.items():
        assert any(line.split()[:1] == [name] and command.HELP[:20] in line for line in lines)
        assert f"usage: hpt {name}" in help_of(capsys, name)


def test_help_of_train_lists_recipes_methods_and_settings(capsys):
    out = help_of(capsys, "train")
    assert f"recipes: {', '.join(shipped_recipes())}" in out
    assert f"methods (method=NAME): {', '.join(shipped_methods())}" in out
    assert "\n  optimizer.lr " in out
    assert out.rstrip().endswith("hpt train --resume runs/demo")


@pytest.mark.parametrize("arguments", [["--help"], ["eval", "--help"], ["compare"], ["eval", "model", "--n", "none"]])
def test_help_and_wrong_arguments_load_neither_torch_nor_numpy(arguments):
    script = (
        "import sys\n"
        "from hpt.commands.main import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'transformers', 'pydantic'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "usage: hpt" in done.stdout + done.stderr
    assert "AssertionError" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["steps=0"], "steps = 0: input should be greater than or equal to 1"),
        (["--steps", "3"], "unknown argument --steps; settings are changed without dashes: steps=3"),
        (["--optimizer.lr=1e-5"], "settings are changed without dashes: optimizer.lr=1e-5"),
        (["lora=true"], "did you mean model.lora?"),
        (["output=/proc/nowhere/run"], "output = '/proc/nowhere/run': cannot be written"),
        (["output=" + "r" * 300], "cannot be written: File name too long"),
    ],
)
def test_wrong_settings_are_named_without_torch(tmp_path, arguments, said):
    script = (
        "import sys\n"
        "from hpt.commands.main import main\n"
        "try:\n"
        "    sys.exit(main(['train', 'demo', *sys.argv[1:]]))\n"
        "finally:\n"
        "    assert not {'torch', 'numpy', 'transformers'} & sys.modules.keys()\n"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "AssertionError" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve", "demo", "steps=1", "--port", "8001", "seed=2"],
        ["plan", "demo", "--response-tokens", "9", "steps=1", "seed=2"],
        ["train", "demo", "steps=1", "--resume", "run", "seed=2"],
    ],
)
def test_settings_may_stand_before_and_after_options(arguments):
    assert module._parse(arguments).settings == ["steps=1", "seed=2"]


class Raises:
    HELP = "raises"

    def __init__(self, error):
        self.error = error

    def add_arguments(self, parser):
        pass

    def run(self, options):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (
            HptError("a list [1, 2], a [bold]tag[/] and a [/path]"),
            2,
            "error: a list [1, 2], a [bold]tag[/] and a [/path]",
        ),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_errors_are_printed_as_they_are_and_give_the_exit_code(monkeypatch, capsys, error, code, text):
    monkeypatch.setitem(COMMANDS, "report", Raises(error))
    assert main(["report"]) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", text + "\n")


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setitem(COMMANDS, "report", Raises(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        main(["report"])


def test_a_command_is_required(capsys):
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == module.USAGE_ERROR
    assert "required: COMMAND" in capsys.readouterr().err
