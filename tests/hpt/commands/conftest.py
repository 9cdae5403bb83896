"""What tests of the commands share."""

import pytest

from hpt.commands.main import main


@pytest.fixture
def hpt_eval(world, capsys, monkeypatch):
    """Runs hpt eval on the world's model; its exit code, stdout and stderr."""
    monkeypatch.delenv("HPT_DATA_DIR", raising=False)

    def run(*arguments, model=world.parent / "model"):
        code = main(["eval", str(model), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
