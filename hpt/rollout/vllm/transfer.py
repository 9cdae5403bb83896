"""How a vLLM server gets the policy's weights: by vLLM's control endpoints, and a sender that carries the tensors.

An update is: pause, start, update (while the tensors travel), finish, resume. It is given its version when it finishes;
until then the server's version is UPDATING, so that nobody takes half an update for a whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import torch

from hpt.rollout.vllm.connection import ServerConnection
from hpt.rollout.vllm.senders import Control, Sender, WeightDescription, WeightSource, connected_sender
from hpt.support.errors import RolloutError

UPDATING = "updating"
"""The version of weights that are being replaced."""


class WeightTransfer:
    """Updates a server's weights; connects at the first update, and again after one that failed.

    backend: gloo, nccl or ipc. device: the trainer's.
    """

    def __init__(self, server: ServerConnection, backend: str, device: torch.device) -> None:
        self._server = server
        self._backend = backend
        self._device = device
        self._source = WeightSource()
        self._control = Control(server)
        self._sender: Sender | None = None

    def update(
        self, version: str, descriptions: list[WeightDescription], weights: Iterator[tuple[str, torch.Tensor]]
    ) -> None:
        """Sends `weights`, which `descriptions` describe, and gives them their version.

        RolloutError if the server does not have all of them afterwards; it then answers nobody until it has.
        """
        server = self._server
        try:
            if self._sender is not None:
                server.confirm_version(self._control.version)
            half_finished = server.weight_version() == UPDATING
            server.post("/pause?mode=abort")
            server.post("/update_weight_version", {"new_version": UPDATING})
            if self._sender is None:
                if half_finished:
                    self._end_update()
                server.post("/shutdown_weight_transfer_engine")
                self._sender = connected_sender(self._backend, server, self._control, self._source, self._device)
            self._control.version = version
            self._source.set(descriptions, weights)
            self._sender.send_weights()
            server.post("/resume")
            server.confirm_version(version)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._sender is not None:
            self._sender.shutdown()
            self._sender = None

    def _end_update(self) -> None:
        """Ends an update that was left in the middle, so that no tensor of it is left in the next one."""
        with suppress(RolloutError):  # it may still be open
            self._server.post("/start_weight_update")
        self._server.post("/finish_weight_update", {"weight_version": UPDATING})
