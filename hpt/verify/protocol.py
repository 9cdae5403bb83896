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

COMMAND = struct.Struct("q")
"""An order to the fork server, the number of a worker: with a socket attached, fork it; without one, kill it."""


def encode_request(function: str, arguments: tuple[Any, ...]) -> bytes:
    """A call for a worker. The arguments are pickled on their own, so that only their call fails where they do."""
    return pickle.dumps((function, pickle.dumps(arguments)))


def encode(message: dict[str, Any]) -> bytes:
    """The message as one line. Numbers of other libraries, such as a numpy scalar, become floats."""
    return json.dumps(message, default=float).encode() + b"\n"


def receive(connection: socket.socket, deadline: float) -> dict[str, Any]:
    """The next message.

    deadline: a time of time.monotonic(); TimeoutError when it has passed.
    ConnectionError where the other side has ended.
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
    message: dict[str, Any] = json.loads(line)
    return message


def is_open(connection: socket.socket) -> bool:
    """Whether the other side still lives. For a connection on which no message is due."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)  # only its end makes it readable
