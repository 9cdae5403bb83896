"""Responses from the completions endpoint of a vLLM server: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from queue import Empty, SimpleQueue
from typing import Any

from hpt.rollout.engine import Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.connection import LONGEST_ANSWER, PROBE_SECONDS, ServerConnection, stated_reason
from hpt.rollout.vllm.requests import Request
from hpt.rollout.vllm.responses import LOWEST_LOGPROB, checked_rollout, logprobs_known
from hpt.support.errors import RolloutError

REQUESTS_AT_ONCE = 512
"""Each is a thread and a connection, of which a process may often have no more than 1,024."""
TOKENS_PER_MESSAGE = 64
"""A response arrives in parts of so many tokens, which show that there is progress."""


class Completions:
    """Samples from a server.

    stop_ids: any of them ends a response. vocabulary: number of entries. logprobs_mode: the server's.
    """

    def __init__(self, server: ServerConnection, stop_ids: Sequence[int], vocabulary: int, logprobs_mode: str) -> None:
        self._server = server
        self._stop_ids = list(stop_ids)
        self._vocabulary = vocabulary
        self._logprobs_mode = logprobs_mode

    def sample(
        self, requests: Sequence[Request], sampling: Sampling, confirm: Callable[[], None]
    ) -> Generator[tuple[Request, Rollout], None, None]:
        """Yields each rollout when it is finished, while others are sampled.

        confirm: called after rollouts have arrived and before they are yielded; raises if they must not be used.
        ServerLost if the server dies, hangs or makes no progress for `rollout.vllm.timeout`; RolloutError for an answer
        that is not a whole response.
        """
        running = _Running(self._server, len(requests))
        try:
            for request in requests:
                running.start(partial(self._response, running, request, sampling), request)
            left = len(requests)
            while left:
                finished = running.finished()
                confirm()
                yield from finished
                left -= len(finished)
        finally:
            running.stop()

    def _response(self, running: _Running, request: Request, sampling: Sampling) -> Rollout:
        server = self._server
        connection = server.connect()
        opened = connection.sock  # http.client forgets it when the answer begins
        try:
            running.watch(opened)
            server.send(connection, "POST", "/v1/completions", self._body(request, sampling))
            answer = connection.getresponse()
            server.check_status(answer)
            tokens, logprobs, reason = self._read(running, answer, sampling.max_tokens)
        except (HTTPException, OSError) as error:
            reason = str(error) or type(error).__name__
            raise server.lost(f"broke off in the middle of an answer ({reason}); its own output says why") from error
        finally:
            running.unwatch(opened)
            connection.close()
        if reason == "abort":
            raise RolloutError(
                f"{server} aborted a response, as an update of its weights does: does another run use it?"
            )
        try:
            self._check(tokens, logprobs, reason, sampling)
            return checked_rollout(tokens, logprobs, reason, known=logprobs_known(self._logprobs_mode, sampling))
        except RolloutError as error:
            raise RolloutError(f"{server} gave a response that cannot be used: {error}") from error

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        return {
            "prompt": request.prompt,
            "seed": request.seed,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": self._stop_ids,
            "ignore_eos": True,  # only stop_token_ids end a response
            "logprobs": 0,  # only the sampled token's
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # the server has no tokenizer
            "stream": True,
            "stream_interval": TOKENS_PER_MESSAGE,
        }

    def _read(
        self, running: _Running, answer: HTTPResponse, max_tokens: int
    ) -> tuple[list[int], list[float], str | None]:
        """Tokens, log-probabilities and finish reason of an answer in server-sent events."""
        tokens: list[int] = []
        logprobs: list[float] = []
        reason = None
        while line := answer.readline(LONGEST_ANSWER):
            if len(line) == LONGEST_ANSWER or len(tokens) > max_tokens:
                raise RolloutError(f"{self._server} gave an answer that does not end; it may have {max_tokens} tokens")
            if not line.startswith(b"data:"):
                continue
            content = line.removeprefix(b"data:").strip()
            if content == b"[DONE]":
                return tokens, logprobs, reason
            try:
                message = json.loads(content)
                if "error" in message:
                    raise self._server.lost(f"failed: {stated_reason(content)}; its own output says why")
                [choice] = message["choices"]
                tokens += choice["token_ids"]
                logprobs += choice["logprobs"]["token_logprobs"]
                reason = choice["finish_reason"]
                if choice["token_ids"]:
                    running.note_progress()
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise RolloutError(
                    f"{self._server} gave an answer that is not a completion: {content[:200].decode(errors='replace')}"
                ) from error
        raise self._server.lost("broke off in the middle of an answer; its own output says why")

    def _check(self, tokens: list[Any], logprobs: list[Any], reason: str | None, sampling: Sampling) -> None:
        """RolloutError for what vLLM would not sample with these settings."""
        for token in tokens:
            if type(token) is not int or not 0 <= token < self._vocabulary:
                raise RolloutError(f"{token!r} is not a token of the model's {self._vocabulary}")
        for logprob in logprobs:
            if not isinstance(logprob, int | float) or not LOWEST_LOGPROB <= logprob <= 1e-3 or math.isnan(logprob):
                raise RolloutError(f"{logprob!r} is not a log-probability")
        if reason == "stop" and (not tokens or tokens[-1] not in self._stop_ids):
            raise RolloutError(f"it stopped at {tokens[-1:]}, and the stop tokens are {self._stop_ids}")
        if reason == "length" and len(tokens) != sampling.max_tokens:
            raise RolloutError(f"it was cut after {len(tokens)} tokens, and the limit is {sampling.max_tokens}")


class _Running:
    """The responses that are being sampled, each by a thread."""

    def __init__(self, server: ServerConnection, count: int) -> None:
        self._server = server
        self._pool = ThreadPoolExecutor(min(REQUESTS_AT_ONCE, max(count, 1)))
        self._results: SimpleQueue[tuple[Request, Rollout | Exception]] = SimpleQueue()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._stopped = False
        self._last_progress = time.monotonic()

    def start(self, work: Callable[[], Rollout], request: Request) -> None:
        def run() -> None:
            outcome: Rollout | Exception
            try:
                outcome = work()
            except Exception as error:
                outcome = error
            self._results.put((request, outcome))

        self._pool.submit(run)

    def finished(self) -> list[tuple[Request, Rollout]]:
        """All that have finished since the last call, at least one. The error of one that failed."""
        while True:
            try:
                results = [self._results.get(timeout=min(PROBE_SECONDS, self._server.timeout))]
                break
            except Empty:
                if time.monotonic() - self._last_progress >= self._server.timeout:
                    raise self._server.lost(f"has made no progress for {self._server.timeout:g} s") from None
                self._server.probe()
        while not self._results.empty():
            results.append(self._results.get())
        finished = []
        for request, outcome in results:
            if isinstance(outcome, Exception):
                raise outcome
            finished.append((request, outcome))
        return finished

    def note_progress(self) -> None:
        self._last_progress = time.monotonic()

    def watch(self, connection: socket.socket) -> None:
        """`stop` will end this connection."""
        with self._lock:
            self._sockets.add(connection)
            if self._stopped:
                _end(connection)

    def unwatch(self, connection: socket.socket) -> None:
        with self._lock:
            self._sockets.discard(connection)

    def stop(self) -> None:
        """Ends all connections, on which vLLM ends their requests, and waits for the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._stopped = True
            for connection in self._sockets:
                _end(connection)
        self._pool.shutdown(wait=True)


def _end(connection: socket.socket) -> None:
    """Wakes the thread that reads from it."""
    with suppress(OSError):  # it has ended by itself
        connection.shutdown(socket.SHUT_RDWR)
