"""Where a benchmark writes its results."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


def output_path(text: str) -> Path:
    """For argparse. Makes the folder, so that nothing is measured whose results cannot be written."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{path.parent}: cannot be written: {error.strerror}") from None
