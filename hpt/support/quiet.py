"""Keeps the notices and progress bars of libraries out of a command's own output."""

from __future__ import annotations

import logging
import os

import torch
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Errors of libraries still show."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # bitsandbytes warns about optional kernels that are not installed.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, prints what it has chosen
