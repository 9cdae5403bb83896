"""A stand-in for vLLM's server on a small transformers model: the endpoints that hpt uses, and real gloo transfers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from hpt.config.recipe import load_config
from hpt.rollout.vllm.gloo_group import GlooGroup, address_towards, store_at
from hpt.rollout.vllm.identity import model_name

KEY = "a-key"


class FakeVllm(ThreadingHTTPServer):
    """Serves the model of `world` at a port of its own, with weights of NaN until it is sent others.

    behave: for a path, what is done instead of answering it; it is given the handler.
    """

    daemon_threads = True
    request_queue_size = 512  # rollouts connect all at once, and a full queue resets some of them

    def __init__(self, world: Path, port: int = 0) -> None:
        config = load_config(world)
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
        self.name = model_name(config)
        self.settings = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs", "hf_overrides": {}}
        self.backend = "gloo"
        self.max_model_len = 4096
        self.behave: dict[str, Callable[[Handler], Any]] = {}
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self.group: GlooGroup | None = None
        self.start_again()
        super().__init__(("127.0.0.1", port), Handler)

    def start_again(self) -> None:
        """Loses the weights, as a new start does."""
        self.version, self.open_update, self.group = "default", False, None
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(float("nan"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        """What a path other than the completions' answers, as JSON."""
        match path:
            case "/v1/models":
                card = {"id": self.name, "root": "the world's", "max_model_len": self.max_model_len}
                return {"data": [card, card | {"id": "the world's"}]}
            case "/server_info":
                transfer = {"backend": self.backend}
                return {"vllm_config": {"model_config": self.settings, "weight_transfer_config": transfer}}
            case "/weight_info":
                return {"weight_version": self.version}
            case "/get_world_size":
                return {"world_size": 1}
            case "/update_weight_version":
                self.version = body["new_version"]
            case "/init_weight_transfer_engine":
                where = body["init_info"]
                store = store_at(where["address"], where["port"], where["world_size"], where["timeout"])
                own = address_towards(where["address"], where["port"])
                self.group = GlooGroup(store, 1, where["world_size"], own, where["timeout"])
            case "/start_weight_update":
                if self.open_update:
                    raise RuntimeError("a weight update is already active")
                self.open_update = True
            case "/update_weights":
                self.receive(**body["update_info"])
            case "/finish_weight_update":
                self.open_update = False
                self.version = body["weight_version"]
        return {}

    def receive(self, names: list[str], dtype_names: list[str], shapes: list[list[int]]) -> None:
        assert self.group is not None
        try:
            state = self.model.state_dict()
            for name, dtype, shape in zip(names, dtype_names, shapes, strict=True):
                weight = torch.empty(shape, dtype=getattr(torch, dtype))
                self.group.broadcast(weight)
                state[name].copy_(weight)
        except BaseException:
            self.open_update = False
            self.group.close()
            raise

    def handle_error(self, *arguments: Any) -> None:
        """Clients may go away in the middle of an answer."""

    @torch.no_grad()
    def sample(self, request: dict[str, Any]) -> Iterator[tuple[int, float, str | None]]:
        """Tokens with their log-probabilities, and the reason at the last."""
        draw = torch.Generator().manual_seed(request["seed"])
        tokens = list(request["prompt"])
        for left in reversed(range(request["max_tokens"])):
            with self.lock:
                logits = self.model(torch.tensor([tokens])).logits[0, -1]
            logprobs = (logits / request["temperature"]).log_softmax(-1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=draw))
            tokens.append(token)
            stops = token in request["stop_token_ids"]
            yield token, logprobs[token].item(), "stop" if stops else None if left else "length"
            if stops:
                return


class Handler(BaseHTTPRequestHandler):
    server: FakeVllm
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}")
        path = self.path.partition("?")[0]
        self.server.paths.append(path)
        if path in self.server.behave:
            self.server.behave[path](self)
        elif path != "/health" and self.headers["Authorization"] != f"Bearer {KEY}":
            self.reply({"error": {"message": "Unauthorized"}}, 401)
        elif path == "/v1/completions":
            with self.events() as send:
                for token, logprob, reason in self.server.sample(self.body):
                    send(completion([token], [logprob], reason))
        else:
            try:
                self.reply(self.server.answer(path, self.body))
            except Exception as error:
                self.reply({"error": {"message": f"{type(error).__name__}: {error}"}}, 500)

    @contextmanager
    def events(self) -> Iterator[Callable[[Any], None]]:
        """Server-sent events; those of a whole answer end with [DONE]."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()

        def send(content: Any) -> None:
            self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
            self.wfile.flush()

        yield send
        self.wfile.write(b"data: [DONE]\n\n")

    def reply(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def completion(tokens: list[Any], logprobs: list[Any], reason: str | None) -> dict[str, Any]:
    """A part of an answer, as vLLM 0.32 has it."""
    return {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": reason}]}


@contextmanager
def listening(server: FakeVllm) -> Iterator[FakeVllm]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
