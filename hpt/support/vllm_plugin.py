"""vLLM's plugin of hpt (entry point `vllm.general_plugins`): every process of vLLM calls `register` when it starts.

It stands in a room that imports nothing: neither torch nor the rest of hpt is loaded before a server is asked for
`--weight-transfer-config '{"backend": "gloo"}'`.
"""

from __future__ import annotations


def register() -> None:
    """Makes the weight transfer backend "gloo" known to vLLM. May be called again."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:  # another vLLM than hpt's server needs
        return
    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "hpt.rollout.vllm.gloo_engine", "GlooWeightTransferEngine")
