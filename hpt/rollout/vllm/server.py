"""A vLLM server on its own GPUs: `python -m hpt.rollout.vllm.server RECIPE [key=value ...]`.

It samples for one run, whose recipe names it as `rollout.vllm.url`:

    GET  /health                    the model it serves, as JSON
    POST /weights?version=V&last=0  a part of the policy's weights, in safetensors format. The last part (last=1) starts
                                    the weight update, so the model never has half of one
    POST /generate                  prompts as token ids, in JSON. The answer has one JSON object per line: each rollout
                                    when it is finished, a heartbeat {"alive": ENGINE STEPS} every few seconds, and
                                    {"done": true} at the end
An error is {"error": MESSAGE}: in an answer with status 500, or as the last line of an answer to /generate.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from safetensors.torch import load

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.data.prompt import PromptRenderer
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.rollout.engine import Sampling
from hpt.rollout.rollout import Rollout
from hpt.rollout.vllm.arguments import EngineSettings
from hpt.rollout.vllm.connection import identity
from hpt.rollout.vllm.engine import VllmEngine
from hpt.rollout.weights import GetWeights
from hpt.support.device import pick_device
from hpt.support.errors import HptError
from hpt.support.model_config import read_model_config

HEARTBEAT_SECONDS = 5.0
"""Time between heartbeats while no rollout is finished."""


class RolloutServer:
    """An engine with the weights that the trainer sent. Only one thread at a time uses the engine.

    make_engine: is given a function that returns the weights to load. description: what `/health` answers.
    """

    def __init__(self, make_engine: Callable[[GetWeights], VllmEngine], description: dict[str, Any]) -> None:
        self.description = description
        self.version: str | None = None
        self._arriving_version = ""
        self._arriving: dict[str, torch.Tensor] = {}
        self._to_load: dict[str, torch.Tensor] = {}
        self._engine_lock = threading.Lock()
        self._engine = make_engine(lambda: self._to_load.items())

    def health(self) -> dict[str, Any]:
        return self.description | {"version": self.version}

    def receive(self, version: str, tensors: dict[str, torch.Tensor], last: bool) -> dict[str, Any]:
        """Keeps a part of the weights `version`; with the last part all of them are loaded. Returns `health`."""
        with self._engine_lock:
            if version != self._arriving_version:
                self._arriving_version, self._arriving = version, {}
            self._arriving.update(tensors)
            if last:
                self._load_arrived()
        return self.health()

    def _load_arrived(self) -> None:
        self.version = None  # none is complete until the engine has loaded all tensors
        self._to_load = self._arriving
        self._engine.weights_changed()
        self._engine.load_weights()
        self.version = self._arriving_version
        self._arriving_version, self._arriving, self._to_load = "", {}, {}

    def generate(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the lines of an answer to `/generate`."""
        lines: SimpleQueue[dict[str, Any]] = SimpleQueue()
        thread = threading.Thread(target=self._generate_into, args=(lines, request))
        thread.start()
        while True:
            try:
                line = lines.get(timeout=HEARTBEAT_SECONDS)
            except Empty:
                line = {"alive": self._engine.steps}
            yield line
            if "done" in line or "error" in line:
                thread.join()
                return

    def _generate_into(self, lines: SimpleQueue[dict[str, Any]], request: dict[str, Any]) -> None:
        """Puts each rollout into `lines` when it is finished, and then {"done": true} or {"error": MESSAGE}."""

        def on_rollout(index: int, place: int, rollout: Rollout) -> None:
            lines.put(
                {
                    "index": index,
                    "place": place,
                    "tokens": rollout.tokens,
                    "logprobs": rollout.logprobs,
                    "finish_reason": rollout.finish_reason,
                }
            )

        try:
            with self._engine_lock:
                if request["version"] != self.version:
                    raise HptError(
                        f"the server has the weights {self.version}, not {request['version']}: does another run use it?"
                    )
                sampling = Sampling(**request["sampling"])
                self._engine.generate(request["prompts"], sampling, request["seed"], on_rollout=on_rollout)
            lines.put({"done": True})
        except Exception as error:
            lines.put({"error": str(error)})


class Handler(BaseHTTPRequestHandler):
    server: HttpServer

    def do_GET(self) -> None:
        self._answer_json(self.server.rollouts.health)

    def do_POST(self) -> None:
        target = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if target.path == "/weights":
            query = parse_qs(target.query)
            self._answer_json(
                lambda: self.server.rollouts.receive(query["version"][0], load(body), last=query["last"][0] == "1")
            )
        elif target.path == "/generate":
            self.send_response(200)
            self.end_headers()
            for line in self.server.rollouts.generate(json.loads(body)):
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        else:
            self.send_error(404)

    def _answer_json(self, work: Callable[[], dict[str, Any]]) -> None:
        """Sends what `work` returns, or its error with status 500."""
        status = 200
        try:
            result = work()
        except Exception as error:
            status, result = 500, {"error": str(error)}
        body = json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing: the weights alone are many requests per step."""


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], rollouts: RolloutServer) -> None:
        self.rollouts = rollouts
        super().__init__(address, Handler)


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is stopped; returns 2 after an error that the user can fix."""
    parser = argparse.ArgumentParser(
        prog="python -m hpt.rollout.vllm.server",
        description="A vLLM server that samples the rollouts of one run (hpt train ... rollout.engine=vllm "
        "rollout.vllm.url=http://HOST:PORT). It takes model and rollout settings from the run's recipe; the trainer "
        "sends the weights.",
    )
    parser.add_argument("recipe", help="the run's recipe")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, as for hpt train")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: only this machine)")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    fixed = [
        f"rollout.vllm.url=http://{options.host}:{options.port}",
        "rollout.vllm.sleep_level=0",
        "rollout.vllm.adapters=merged",
    ]
    try:
        config = load_config(options.recipe, [*options.settings, *fixed])
        server = HttpServer((options.host, options.port), make_rollout_server(config))
    except (HptError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Serving {config.model.path} at http://{options.host}:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("Stopped.")
    return 0


def make_rollout_server(config: Config) -> RolloutServer:
    """A server with vLLM as the recipe sets it up, still with dummy weights."""
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    renderer = PromptRenderer(tokenizer, config.prompt, eos_token_ids=generation_ends(config.model.path))
    model_config = read_model_config(
        config.model.path, config.model.config, trust_remote_code=config.model.trust_remote_code
    )

    def make_engine(weights: GetWeights) -> VllmEngine:
        settings = EngineSettings.of_run(config, pick_device(config.device), config.data.max_prompt_tokens)
        return VllmEngine(settings, stop_ids=renderer.stop_ids, weights=weights)

    description = {"model": config.model.path, "identity": identity(model_config, config, renderer.stop_ids)}
    return RolloutServer(make_engine, description)


if __name__ == "__main__":
    sys.exit(main())
