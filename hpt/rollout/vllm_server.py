"""vLLM as a server of its own, on GPUs of its own: `python -m hpt.rollout.vllm_server RECIPE [key=value ...]`.

It serves the model of a recipe to one run, which names it by `rollout.vllm.url`:

    GET  /health                    what it serves, as JSON
    POST /weights?version=V&last=0  a part of the policy's weights in safetensors format; the last part (last=1) puts
                                    them all in place at once, so half an update never reaches the model
    POST /generate                  prompts as token ids, JSON; the answer is a JSON object a line: each rollout as it
                                    is finished, {"alive": ...} every few seconds, then {"done": true}
An error is {"error": ...}, in an answer of status 4xx or 5xx or as the last line.
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
from transformers import AutoConfig

from hpt.config.recipe import load_config
from hpt.config.schema import Config
from hpt.data.prompt import PromptRenderer
from hpt.data.tokenizer import generation_ends, load_tokenizer
from hpt.rollout.engine import Rollout, Sampling
from hpt.rollout.vllm import VllmEngine
from hpt.rollout.vllm_client import identity
from hpt.support.device import pick_device
from hpt.support.errors import HptError

ALIVE_EVERY = 5.0
"""Seconds between signs of life while nothing is finished."""


class RolloutServer:
    """The engine and the weights it was sent. One thread at a time may use the engine."""

    def __init__(self, make_engine: Callable[[Callable[[], Any]], VllmEngine], about: dict[str, Any]) -> None:
        self.about = about
        self.version: str | None = None
        self._arriving: tuple[str, dict[str, torch.Tensor]] = ("", {})
        self._tensors: dict[str, torch.Tensor] = {}
        self._busy = threading.Lock()
        self._engine = make_engine(lambda: self._tensors.items())

    def health(self) -> dict[str, Any]:
        return self.about | {"version": self.version}

    def receive(self, version: str, tensors: dict[str, torch.Tensor], last: bool) -> dict[str, Any]:
        """Takes a part of the weights `version`; all are put in place with the last. Returns `health`."""
        with self._busy:
            if self._arriving[0] != version:
                self._arriving = (version, {})
            self._arriving[1].update(tensors)
            if last:
                self._tensors, self.version = self._arriving[1], None
                self._engine.weights_changed()
                self._engine.generate([], Sampling(n=1, max_tokens=1), 0)  # loads them
                self.version = version
                self._tensors, self._arriving = {}, ("", {})
        return self.health()

    def generate(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rollouts as they are finished, with signs of life between them."""
        lines: SimpleQueue[dict[str, Any]] = SimpleQueue()

        def finished(index: int, place: int, rollout: Rollout) -> None:
            lines.put({"index": index, "place": place} | vars(rollout))

        def work() -> None:
            try:
                with self._busy:
                    if request["version"] != self.version:
                        raise HptError(
                            f"the server has the weights {self.version}, not {request['version']}: "
                            "does another run use it?"
                        )
                    sampling = Sampling(**request["sampling"])
                    self._engine.generate(request["prompts"], sampling, request["seed"], on_rollout=finished)
                lines.put({"done": True})
            except Exception as error:
                lines.put({"error": str(error)})

        thread = threading.Thread(target=work)
        thread.start()
        while True:
            try:
                line = lines.get(timeout=ALIVE_EVERY)
            except Empty:
                line = {"alive": self._engine.steps}
            yield line
            if "done" in line or "error" in line:
                thread.join()
                return


class Handler(BaseHTTPRequestHandler):
    server: HttpServer

    def do_GET(self) -> None:
        self._answer(lambda: self.server.rollouts.health())

    def do_POST(self) -> None:
        target = urlsplit(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if target.path == "/weights":
            query = parse_qs(target.query)
            self._answer(lambda: self.server.rollouts.receive(query["version"][0], load(body), query["last"][0] == "1"))
        elif target.path == "/generate":
            self.send_response(200)
            self.end_headers()
            for line in self.server.rollouts.generate(json.loads(body)):
                self.wfile.write(json.dumps(line).encode() + b"\n")
                self.wfile.flush()
        else:
            self.send_error(404)

    def _answer(self, work: Callable[[], dict[str, Any]]) -> None:
        status = 200
        try:
            found = work()
        except Exception as error:
            status, found = 500, {"error": str(error)}
        body = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """A line a request would be a line a weight."""


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], rollouts: RolloutServer) -> None:
        self.rollouts = rollouts
        super().__init__(address, Handler)


def main(arguments: list[str] | None = None) -> int:
    """Serves until it is stopped; returns 2 for an error the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m hpt.rollout.vllm_server",
        description="vLLM as a server for the rollouts of one run (hpt train ... rollout.engine=vllm "
        "rollout.vllm.url=http://HOST:PORT). It takes model and rollout settings from the run's recipe; the weights "
        "come from the trainer.",
    )
    parser.add_argument("recipe", help="the recipe of the run that it serves")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="changes to the recipe, as for hpt train")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    try:
        url = f"rollout.vllm.url=http://{options.host}:{options.port}"
        awake = [url, "rollout.vllm.sleep_level=0", "rollout.vllm.adapters=merged"]
        config = load_config(options.recipe, [*options.settings, *awake])
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
    """An engine as the recipe has it, without weights."""
    tokenizer = load_tokenizer(config.model.path, trust_remote_code=config.model.trust_remote_code)
    renderer = PromptRenderer(tokenizer, config.prompt, eos_token_ids=generation_ends(config.model.path))
    model_config = AutoConfig.from_pretrained(config.model.path, trust_remote_code=config.model.trust_remote_code)
    response = max(config.rollout.max_tokens, config.eval.max_tokens or 0)
    longest = config.data.max_prompt_tokens and config.data.max_prompt_tokens + response
    about = {"model": config.model.path, "identity": identity(model_config, config, renderer.stop_ids)}
    return RolloutServer(
        lambda weights: VllmEngine(
            config, weights, stop_ids=renderer.stop_ids, device=pick_device(config.device), longest=longest
        ),
        about,
    )


if __name__ == "__main__":
    sys.exit(main())
