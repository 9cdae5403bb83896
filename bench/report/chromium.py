"""Runs a script against a page in headless Chromium, in real time, and reads what it logs."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import unquote

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --allow-file-access-from-files --enable-logging=stderr --window-size=1400,1000"
)
_MARK = "PROBE:"
_PROBE = """<!doctype html><body style="margin: 0">
<iframe style="width: 1400px; height: 1000px; border: 0"></iframe><script>
const report = (value) => console.log("PROBE:" + encodeURIComponent(JSON.stringify(value)) + ":");
const frame = document.querySelector("iframe");
const wait = async (test) => {
  for (;;) {
    const found = test();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
};
const began = performance.now();
frame.src = PAGE;
(async () => {
  await wait(() => frame.contentDocument?.querySelector("#rollouts[data-ready]"));
  const page = frame.contentDocument;
  const find = (selector) => page.querySelector(selector);
  const all = (selector) => [...page.querySelectorAll(selector)];
  SCRIPT
})().catch((error) => report({ error: `${error.stack}` }));
</script></body>"""


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def probe(browser: str, page: Path, script: str, timeout: float = 120) -> Any:
    """What `script` hands to its function `report`, within `timeout` seconds, once the browser of rollouts is there.

    script: the body of an async function that knows `frame`, `find`, `all` and `wait` of the page, and `began`, the
    time at which it was opened. RuntimeError where it reports nothing.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Chromium writes until it has ended
        html = Path(folder) / "probe.html"
        html.write_text(_PROBE.replace("PAGE", json.dumps(page.resolve().as_uri())).replace("SCRIPT", script))
        command = [browser, *_FLAGS.split(), f"--user-data-dir={folder}/profile", html.as_uri()]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            timer = threading.Timer(timeout, process.kill)
            timer.start()
            try:
                assert process.stderr is not None
                line = next((line for line in process.stderr if _MARK in line), None)
            finally:
                timer.cancel()
                process.terminate()
                process.wait()
    if line is None:
        raise RuntimeError(f"{page}: the browser reported nothing within {timeout:g} s")
    return json.loads(unquote(line.split(_MARK)[1].split(":")[0]))
