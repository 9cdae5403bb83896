"""What is said of weights that cannot be read."""

from __future__ import annotations

from pickle import UnpicklingError

from safetensors import SafetensorError

UNREADABLE = (OSError, ValueError, SafetensorError, UnpicklingError, EOFError, KeyError, TypeError, ZeroDivisionError)
"""What transformers and peft raise for them, and for settings that make no model."""


def what_is_wrong(error: Exception) -> str:
    """A sentence on an error of UNREADABLE."""
    if isinstance(error, (EOFError, KeyError, TypeError, ZeroDivisionError)):
        return f"{type(error).__name__}: {error}; is one of its files damaged?"
    if not isinstance(error, UnpicklingError):
        return str(error)
    # torch's own text advises to load it without the check.
    return (
        "its weights are a pickle that is broken or holds more than tensors. Reading such a file can run code, so it "
        "is refused: take the model's safetensors"
    )
