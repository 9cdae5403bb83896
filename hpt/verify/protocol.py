"""Messages between a pool and its processes, over Unix sockets.

Requests are pickled, since data columns may hold any object, and come from the run's own process. Replies are JSON
objects, one per line: what a worker sends is only read, never executed.
"""

from __future__ import annotations

import json
import pickle
import select
import socket
import struct
import time
from typing import Any

from hpt.support.errors import RewardError

COMMAND = struct.Struct("q")
"""An order to the fork server, the number of a worker: with a socket attached, fork it; without one, kill it."""


LONGEST_MESSAGE = 16 << 20
"""Bytes of a message that is received."""


class NotAMessage(RewardError):
    """What came from a process of the pool is not what its program sends: a function has written to its socket."""

    def __init__(self, received: bytes) -> None:
        more = "..." if len(received) > 80 else ""
        super().__init__(
            f"a process of the verifier or the rewards sent {received[:80]!r}{more}, which is not its answer: does a "
            "function write to file descriptors that are not its own?"
        )


def encode_request(call: str, function: str, arguments: tuple[Any, ...]) -> bytes:
    """A call for a worker, whose reply must repeat `call`. The arguments are pickled on their own, so that only their
    call fails where they do.
    """
    return pickle.dumps((call, function, pickle.dumps(arguments)))


def encode(message: dict[str, Any]) -> bytes:
    """The message as one line. Numbers of other libraries, such as a numpy scalar, become floats."""
    return json.dumps(message, default=float).encode() + b"\n"


def receive(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """The next message.

    deadline: a time of time.monotonic(); TimeoutError when it has passed.
    ConnectionError where the other side has ended. NotAMessage for anything but one JSON object in a line; RewardError
    for a line above LONGEST_MESSAGE.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connection.settimeout(remaining)
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError
        line += received
        if len(line) > LONGEST_MESSAGE:
            raise RewardError(
                "a process of the verifier or the rewards sent a reply that is longer than the limit of "
                f"{LONGEST_MESSAGE / 2**20:g} MiB: does a function return or log that much (log_extra, log_metric), or "
                "write to file descriptors that are not its own?"
            )
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise NotAMessage(bytes(line)) from None
    if not isinstance(message, dict):
        raise NotAMessage(bytes(line))
    return message


def is_open(connection: socket.socket) -> bool:
    """Whether the other side still lives. For a connection on which no message is due."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)  # only its end makes it readable
