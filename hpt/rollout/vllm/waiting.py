"""Waits for a server that is not there (`rollout.vllm.wait`). Every function is a collective of the run's ranks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hpt.rollout.vllm.connection import ServerLost
from hpt.support.distributed import World
from hpt.support.errors import RolloutError
from hpt.support.stopping import stop_asked

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0


def ensure_server(check: Callable[[], None], wait: float, world: World) -> None:
    """Returns when `check` passes, for which it waits up to `wait` seconds; raises as `wait_for_server`."""
    if lost := _look(check, world):
        wait_for_server(check, lost, wait, time.monotonic() + wait, world)


def wait_for_server(check: Callable[[], None], lost: ServerLost, wait: float, deadline: float, world: World) -> None:
    """Returns when `check` passes: it raises ServerLost while there is no server.

    lost: how the server was lost; raised if `wait` is 0, or if the run is asked to stop meanwhile.
    deadline: on rank 0's clock, time.monotonic(); RolloutError after it. Other errors of `check` are raised.
    """
    if wait == 0:
        raise lost
    logger.warning(f"{lost}. Waiting for a server to be started.")
    while world.once(lambda: time.monotonic() < deadline):
        time.sleep(SECONDS_BETWEEN_LOOKS)
        if any(world.gather(stop_asked.is_set())):
            raise lost
        if _look(check, world) is None:
            return
    raise RolloutError(f"{lost}. The run has waited for rollout.vllm.wait = {wait:g} s")


def _look(check: Callable[[], None], world: World) -> ServerLost | None:
    """How the server is lost, as rank 0 sees it; None if it is there."""

    def look() -> ServerLost | None:
        try:
            check()
        except ServerLost as error:
            return error
        return None

    return world.once(look)
