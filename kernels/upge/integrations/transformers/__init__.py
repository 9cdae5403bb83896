"""Fused losses in models of Hugging Face's transformers: `patch(model)`."""

from ..peer import Peer

Peer(
    package="transformers",
    module="transformers.loss.loss_utils",
    functions={
        "ForCausalLMLoss": ("logits", "labels", "vocab_size", "num_items_in_batch", "ignore_index", "shift_labels")
    },
    supported="5.16 to 5.19",
    get='pip install "transformers>=5.16.1,<5.20"',
).load()

from .patching import patch  # noqa: E402 (after the check)

__all__ = ["patch"]
