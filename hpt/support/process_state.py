"""What a run changes in its process and puts back: a script or a notebook goes on after it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging as transformers_logging


@contextmanager
def restoring_process_state() -> Iterator[None]:
    """Restores torch's threads and random states and the libraries' notices, and frees the GPU memory of the run."""
    threads, cpu = torch.get_num_threads(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    bitsandbytes = logging.getLogger("bitsandbytes.backends")
    level = bitsandbytes.level
    try:
        yield
    finally:
        bitsandbytes.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
        torch.set_rng_state(cpu)
        torch.set_num_threads(threads)
        gc.collect()
        torch.cuda.empty_cache()
