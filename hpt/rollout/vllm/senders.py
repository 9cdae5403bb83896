"""The trainer's side of a weight transfer: what carries the tensors to a vLLM server's workers."""

from __future__ import annotations

import base64
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from hpt.rollout.vllm.connection import ServerConnection
from hpt.rollout.vllm.gloo_group import TRAINER, GlooGroup, address_towards, all_arrived, free_port, listening_store

T = TypeVar("T")

POLL_SECONDS = 0.05
MESSAGE_SECONDS = 20.0
"""In which the workers take a message of gloo; they load the weights of the one before meanwhile."""


class WeightDescription(NamedTuple):
    """A weight before it is sent; `shape` is the whole tensor's."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class WeightSource:
    """The weights of an update, in the form that vLLM's senders ask for: what they are, and each of them once."""

    def __init__(self) -> None:
        self.set([], iter(()))

    def set(self, descriptions: list[WeightDescription], weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._descriptions, self._weights = descriptions, weights

    def metadata(self) -> list[WeightDescription]:
        return self._descriptions

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._weights


class Sender(Protocol):
    """Connected to the server's workers. vLLM's trainer engines have these methods."""

    def send_weights(self) -> None:
        """Starts an update, sends the weights of the source and finishes the update."""

    def shutdown(self) -> None:
        """Ends the connection."""


class Control:
    """The server's endpoints for an update, as vLLM's senders call them. version: what the next update is called."""

    def __init__(self, server: ServerConnection) -> None:
        self._server = server
        self.version = ""
        self.refused: Exception | None = None
        """Why the server has given up a transfer, for those who would wait for it at the other end."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        handles = update_info.get("ipc_handles")
        if handles is not None:  # of GPU memory, which go over HTTP as a pickle only
            update_info = update_info | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode()}
            del update_info["ipc_handles"]
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", {"weight_version": weight_version or self.version})

    def _post(self, path: str, body: dict[str, Any]) -> None:
        try:
            self._server.post(path, body)
        except Exception as error:
            self.refused = error
            raise


def connected_sender(
    backend: str, server: ServerConnection, control: Control, source: WeightSource, device: torch.device
) -> Sender:
    """A sender to the server's workers, which join it. RolloutError if they do not. device: the trainer's."""
    try:
        if backend == "gloo":
            return GlooSender(server, control, source)
        if backend == "nccl":
            return NcclSender(server, control, source, device)
        return _ipc_sender(control, source)
    except (OSError, RuntimeError) as error:
        raise server.lost(f"could not be connected for a weight transfer by {backend}: {error}") from error


def _ipc_sender(control: Control, source: WeightSource) -> Sender:
    """vLLM's own, by handles of memory of the GPU that trainer and server share."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    where = IPCTrainerInitInfo(packed=True, rank=0)
    return WeightTransferTrainerFactory.trainer_init(where, client=control, source=source)


class GlooSender:
    """Through CPU memory, one broadcast for each tensor."""

    def __init__(self, server: ServerConnection, control: Control, source: WeightSource) -> None:
        self._server, self._control, self._source = server, control, source
        workers = server.world_size()
        address = address_towards(server.host, server.port)
        store = listening_store(address, workers + 1, server.timeout)
        where = {"address": address, "port": store.port, "world_size": workers + 1, "timeout": server.timeout}
        joining = _in_background(lambda: control.init_weight_transfer_engine(where))
        while not all_arrived(store, workers):
            if joining.done():
                joining.result()
                raise server.lost("says that its workers have joined the weight transfer, and they have not")
            time.sleep(POLL_SECONDS)
        self._group = GlooGroup(store, TRAINER, workers + 1, address, MESSAGE_SECONDS)
        joining.result()

    def send_weights(self) -> None:
        described = self._source.metadata()
        update = {
            "names": [weight.name for weight in described],
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for weight in described],
            "shapes": [list(weight.shape) for weight in described],
        }
        self._control.start_weight_update()
        receiving = _in_background(lambda: self._control.update_weights(update))
        for _, tensor in self._source:
            data = tensor.cpu().contiguous()
            try:
                self._group.broadcast(data)
            except RuntimeError as error:
                receiving.result()  # raises the server's own reason, if it has one
                raise self._server.lost(f"broke off a weight update: {error}") from error
        receiving.result()
        self._control.finish_weight_update()

    def shutdown(self) -> None:
        self._group.close()


class NcclSender:
    """vLLM's own, between GPUs. NCCL would wait for ever for a server that is gone, so a thread waits in its place."""

    def __init__(self, server: ServerConnection, control: Control, source: WeightSource, device: torch.device) -> None:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._control, self._device = control, device
        address = address_towards(server.host, server.port)
        where = NCCLTrainerInitInfo(address, free_port(address), server.world_size() + 1, rank=0)
        self._engine: Sender = self._unless_refused(
            lambda: WeightTransferTrainerFactory.trainer_init(where, client=control, source=source)
        )

    def send_weights(self) -> None:
        self._unless_refused(self._engine.send_weights)

    def shutdown(self) -> None:
        if self._control.refused is None:  # otherwise NCCL may still be waiting
            self._engine.shutdown()

    def _unless_refused(self, work: Callable[[], T]) -> T:
        """What `work` returns. Where the server gives the transfer up, its error, although NCCL may wait on."""

        def on_device() -> T:
            torch.cuda.set_device(self._device)
            return work()

        self._control.refused = None
        working = _in_background(on_device)
        while not working.done():
            if self._control.refused is not None:
                raise self._control.refused
            time.sleep(POLL_SECONDS)
        return working.result()


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Runs `work` in a thread that does not keep the process from ending."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome
