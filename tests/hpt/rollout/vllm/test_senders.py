"""What hpt adds to vLLM's senders for GPUs, with stand-ins for vLLM, NCCL and the server: nothing here needs a GPU."""

from __future__ import annotations

import base64
import pickle
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpt.rollout.vllm import gloo_group, senders
from hpt.rollout.vllm.connection import ServerLost
from hpt.rollout.vllm.senders import Control, NcclSender, WeightSource, connected_sender

GPU = torch.device("cuda")


class Server:
    """Remembers what is posted; refuses the paths in `refused`."""

    host, port = "127.0.0.1", 1

    def __init__(self) -> None:
        self.posted: dict[str, Any] = {}
        self.refused: set[str] = set()

    def post(self, path: str, body: dict[str, Any]) -> None:
        if path in self.refused:
            raise self.lost(f"refuses {path}")
        self.posted[path] = body

    def world_size(self) -> int:
        return 4

    def lost(self, what: str) -> ServerLost:
        return ServerLost(f"the server {what}")


def test_a_tensor_travels_in_messages_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(gloo_group, "MESSAGE_BYTES", 16)
    group = object.__new__(gloo_group.GlooGroup)
    broadcast = lambda parts, options: (sent.extend(parts), SimpleNamespace(wait=lambda: None))[1]
    group._group = SimpleNamespace(broadcast=broadcast)
    tensor = torch.arange(10.0).reshape(2, 5)
    group.broadcast(tensor)
    assert [part.numel() for part in sent] == [4, 4, 2]
    assert torch.equal(torch.cat(sent), tensor.view(-1))


class Engine:
    """In place of vLLM's: asks the server for an update, and then waits for its GPUs, as NCCL does."""

    def __init__(self, where: Any, client: Control, source: WeightSource) -> None:
        self.where, self.client, self.source = where, client, source
        self.gpus_are_there = threading.Event()
        self.ended = False

    def send_weights(self) -> None:
        self.client.start_weight_update()
        update = {"names": ["w"], "ipc_handles": {"a GPU": (1, 2)}} if self.where.backend == "ipc" else {"names": ["w"]}
        threading.Thread(target=self.ask, args=(update,)).start()
        assert self.gpus_are_there.wait(30)
        self.client.finish_weight_update()

    def ask(self, update: dict[str, Any]) -> None:
        try:
            self.client.update_weights(update)
        except ServerLost:
            return
        self.gpus_are_there.set()

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    def info(backend: str) -> Any:
        return lambda *where, **settings: SimpleNamespace(backend=backend, where=where, **settings)

    factory = SimpleNamespace(trainer_init=lambda where, *, client, source: Engine(where, client, source))
    for name, parts in {
        "factory": {"WeightTransferTrainerFactory": factory},
        "nccl_engine": {"NCCLTrainerInitInfo": info("nccl")},
        "ipc_engine": {"IPCTrainerInitInfo": info("ipc")},
    }.items():
        monkeypatch.setitem(sys.modules, f"vllm.distributed.weight_transfer.{name}", SimpleNamespace(**parts))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(senders, "address_towards", lambda host, port: "127.0.0.1")


def connected(backend: str) -> tuple[Any, Control, Server]:
    server: Any = Server()
    control = Control(server)
    control.version = "version 1"
    return connected_sender(backend, server, control, WeightSource(), GPU), control, server


def test_nccl_joins_the_trainer_and_all_workers_and_names_the_version() -> None:
    sender, _, server = connected("nccl")
    address, port, size = sender._engine.where.where
    assert (address, size, sender._engine.where.rank) == ("127.0.0.1", 5, 0)
    assert 0 < port < 65536
    sender.send_weights()
    assert server.posted["/finish_weight_update"] == {"weight_version": "version 1"}
    sender.shutdown()
    assert sender._engine.ended


def test_nccl_does_not_keep_the_trainer_waiting_for_a_server_that_refuses() -> None:
    sender, _, server = connected("nccl")
    assert isinstance(sender, NcclSender)
    server.refused.add("/update_weights")
    with pytest.raises(ServerLost, match="refuses /update_weights"):
        sender.send_weights()
    engine: Any = sender._engine
    sender.shutdown()
    assert not engine.ended  # NCCL may still be waiting, and ending it then waits as well
    engine.gpus_are_there.set()


def test_ipc_sends_its_handles_as_a_pickle() -> None:
    sender, _, server = connected("ipc")
    sender.send_weights()
    update = server.posted["/update_weights"]["update_info"]
    assert update.keys() == {"names", "ipc_handles_pickled"}
    assert pickle.loads(base64.b64decode(update["ipc_handles_pickled"])) == {"a GPU": (1, 2)}
