"""Real vLLM as a server of its own, started by `hpt serve`: weights, log-probabilities, its key, and what happens when
it hangs, dies and is started again.

Skipped where vLLM is not installed; hpt must be installed, too, since vLLM finds the gloo backend by its entry point.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

from hpt.commands.main import main
from hpt.config.recipe import load_config
from hpt.records.checkpoints import checkpoints
from hpt.records.files import read_metrics
from hpt.rollout import Rollout, Sampling
from hpt.rollout.vllm.client import VllmClient
from hpt.rollout.weights import named_weights

# Two implementations of two layers in fp32: rounding errors of 1e-7 add up to about 1e-6.
BOUND = 1e-4
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14], [3]]
STOPS = [1, 2]
KEY = "a-key-of-the-tests"


class Server:
    """`hpt serve` of a recipe at one port; may be started again."""

    def __init__(self, recipe: Path) -> None:
        self.recipe = recipe
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = recipe.parent / "server.log"

    def start(self) -> None:
        command = [sys.executable, "-m", "hpt", "serve", str(self.recipe), "--port", str(self.port)]
        environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}  # compiling takes a minute and is not tested here
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        while self.process.poll() is None:
            with suppress(OSError), urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.5)
        pytest.fail(f"the server ended: {self.log.read_text()[-3000:]}")

    def signal(self, number: int) -> None:
        """To all of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(recipe: Path) -> Iterator[Server]:
    os.environ["VLLM_API_KEY"] = KEY
    server = Server(recipe)
    server.start()
    yield server
    server.kill()
    del os.environ["VLLM_API_KEY"]


def mismatch(model: PreTrainedModel, groups: list[list[Rollout]], temperature: float = 1.0) -> float:
    """Largest difference between the server's log-probabilities and the model's."""
    worst = 0.0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + rollout.tokens])).logits[0, len(prompt) - 1 : -1].double()
            expected = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(rollout.tokens)[:, None])[:, 0]
            worst = max(worst, (expected - torch.tensor(rollout.logprobs).double()).abs().max().item())
    return worst


def test_logprobs_are_the_policys_before_and_after_updates(recipe: Path, server: Server) -> None:
    config = load_config(recipe, [f"rollout.vllm.url={server.url}"])
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    client = VllmClient(
        config,
        partial(named_weights, model),
        stop_ids=STOPS,
        vocabulary=model.config.vocab_size,
        device=torch.device("cpu"),
        longest_prompt=6,
    )
    seen: dict[tuple[int, int], Rollout] = {}

    def remember(index: int, place: int, rollout: Rollout) -> None:
        seen[index, place] = rollout

    for temperature in (1.0, 0.7, 1.3):
        sampling = Sampling(n=6, max_tokens=12, temperature=temperature)
        seen.clear()
        groups = client.generate(PROMPTS, sampling, 3, remember)
        assert seen == {(i, j): rollout for i, group in enumerate(groups) for j, rollout in enumerate(group)}
        assert mismatch(model, groups, temperature) < BOUND
        assert client.generate(PROMPTS, sampling, 3) == groups
        assert client.generate(PROMPTS, sampling, 4) != groups
        assert {rollout.finish_reason for group in groups for rollout in group} == {"stop", "length"}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert mismatch(model, groups, temperature) > 0.1
        client.weights_changed()
    client.close()


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", {}, 200),
        ("/weight_info", {}, 401),
        ("/v1/models", {"Authorization": "Bearer another"}, 401),
        ("/weight_info", {"Authorization": f"Bearer {KEY}"}, 200),
        ("/weight_info", {"Authorization": f"Bearer {KEY}", "Origin": "http://127.0.0.1"}, 403),
    ],
)
def test_the_guard_stands_before_all_of_vllms_endpoints(
    server: Server, path: str, headers: dict[str, str], status: int
) -> None:
    try:
        with urlopen(Request(server.url + path, headers=headers), timeout=10) as answer:
            found = answer.status
    except HTTPError as error:
        found = error.code
    assert found == status


def test_the_key_is_neither_in_the_log_nor_on_a_command_line(server: Server) -> None:
    assert KEY not in server.log.read_text()
    assert KEY.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()


def test_vllms_senders_for_gpus_have_what_is_asked_of_them() -> None:
    """They cannot be connected without a GPU; hpt's part is tested with stand-ins in test_senders.py."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    assert NCCLTrainerInitInfo("127.0.0.1", 1, 5, rank=0).world_size == 5
    assert IPCTrainerInitInfo(packed=True, rank=0).is_sender
    for backend in ("nccl", "ipc"):
        sender = WeightTransferTrainerFactory._registry[backend]()
        assert all(callable(getattr(sender, name)) for name in ("trainer_init", "send_weights", "shutdown"))


def test_two_ranks_send_the_weights_that_they_gather_and_sample_their_own_questions(
    recipe: Path, server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"), "-m", "hpt"]
    settings = ["engine=deepspeed", "deepspeed.stage=3", f"rollout.vllm.url={server.url}", "steps=2", "eval.every=0"]
    subprocess.run([*command, "train", str(recipe), f"output={run}", *settings], check=True, timeout=600)
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert line["reward/count"] == 24
        assert line["rollout/mismatch_max"] < BOUND


def test_a_server_that_hangs_stops_the_run_which_resumes_and_waits_for_one_that_was_killed(
    recipe: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    done = 0

    def after_step(step: int, *actions: partial[None]) -> threading.Thread:
        def watch() -> None:
            while not (run / "rollouts" / f"step-{step:06d}.jsonl").exists():
                time.sleep(0.01)
            for action in actions:
                action()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        return thread

    after_step(2, partial(server.signal, signal.SIGSTOP))
    settings = ["eval.every=0", "checkpoint.every=0", f"rollout.vllm.url={server.url}"]
    assert main(["train", str(recipe), f"output={run}", "steps=5000", *settings]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "hangs: /health has not answered for 10 s" in error
    done = read_metrics(run)[-1]["step"]
    assert done >= 2
    assert [path.name for path in checkpoints(run)] == [f"step-{done:06d}"]
    server.kill()
    server.start()

    killer = after_step(done + 2, partial(server.kill), partial(server.start))
    assert main(["train", "--resume", str(run), f"steps={done + 12}", "rollout.vllm.wait=300"]) == 0
    killer.join()
    assert "Waiting for a server to be started" in " ".join(capsys.readouterr().err.split())
    lines = read_metrics(run)
    assert [line["step"] for line in lines] == list(range(1, done + 13))
    # A step whose rows all have advantage 0 trains on no rollout, and has none to compare.
    mismatches = [line["rollout/mismatch_max"] for line in lines if "rollout/mismatch_max" in line]
    assert len(mismatches) > 2
    assert max(mismatches) < BOUND
