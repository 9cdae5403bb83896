"""Verifier functions that do what they must not, for a few of the responses; light to import."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import zlib

CHUNK = b"x" * (1 << 20)


def _is_victim(response: str) -> bool:
    """About one response in eight, the same in every process."""
    return zlib.crc32(response.encode()) % 8 == 0


def _usual(response: str) -> bool:
    return any(character.isdigit() for character in response[:2])


def sleeps(response: str, answer: str) -> bool:
    if _is_victim(response):
        time.sleep(600)
    return _usual(response)


def ignores_signals(response: str, answer: str) -> bool:
    if _is_victim(response):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    return _usual(response)


def allocates(response: str, answer: str) -> bool:
    kept = []
    while _is_victim(response):
        kept.append(bytearray(1 << 26))
    return _usual(response)


def crashes(response: str, answer: str) -> bool:
    if _is_victim(response):
        ctypes.string_at(0)
    return _usual(response)


def leaves(response: str, answer: str) -> bool:
    if _is_victim(response):
        os._exit(7)
    return _usual(response)


def forks(response: str, answer: str) -> bool:
    """Its children sleep, and it answers without waiting for them."""
    if _is_victim(response):
        subprocess.Popen(["sleep", "600"])
        if os.fork() == 0:
            time.sleep(600)
    return _usual(response)


def forks_away(response: str, answer: str) -> bool:
    """Its grandchild is in a session of its own, with no living parent."""
    if _is_victim(response) and os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return _usual(response)


def prints_a_gigabyte(response: str, answer: str) -> bool:
    """Over all victims of a run, of which there are more than ten."""
    if _is_victim(response):
        for _ in range(100):
            sys.stdout.buffer.write(CHUNK)
    return _usual(response)


def forges(response: str, answer: str) -> bool:
    """Writes a reply to whatever is open: the pool's socket among it."""
    if _is_victim(response):
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, b'{"call": "1", "value": true}\n')
            except OSError:
                continue
    return _usual(response)


def closes_descriptors(response: str, answer: str) -> bool:
    if _is_victim(response):
        os.closerange(0, 256)
    return _usual(response)


def kills_its_parent(response: str, answer: str) -> bool:
    if _is_victim(response):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return _usual(response)


def recurses(response: str, answer: str) -> bool:
    if _is_victim(response):
        sys.setrecursionlimit(1 << 30)
        return recurses(response, answer)
    return _usual(response)
