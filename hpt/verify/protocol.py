"""Messages between a pool and its processes: JSON objects, one per line, over Unix sockets."""

from __future__ import annotations

import json
import select
import socket
import struct
import time
from typing import Any

COMMAND = struct.Struct("q")
"""An order to the fork server, the number of a worker: with a socket attached, fork it; without one, kill it."""


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
