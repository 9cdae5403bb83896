"""Whether the installed TRL is one that these adapters were written against.

The adapters restate TRL's formulas and use names that TRL does not promise to keep. Another version may keep the names
and change a formula, so the version itself is checked, and then every name.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect

SUPPORTED = "1.16"
INSTALL = f'pip install "trl=={SUPPORTED}.*"'

# Private names, or public ones that are not documented as stable, by module.
NAMES = {
    "trl.trainer.utils": ("_ChunkedLogProbFunction", "add_fused_lm_head"),
    "trl.trainer.grpo_trainer": (
        "GRPOTrainer._compute_loss",
        "GRPOTrainer._get_per_token_logps_and_entropies",
        "GRPOTrainer._generate",
        "GRPOTrainer._generate_and_score_completions",
        "GRPOTrainer._calculate_rewards",
        "GRPOTrainer._set_signature_columns_if_needed",
    ),
    "trl.trainer.sft_trainer": ("SFTTrainer.compute_loss", "SFTTrainer.get_tp_size"),
}
LOGPROB_ARGUMENTS = [
    "hidden",
    "weight",
    "bias",
    "targets",
    "temperature",
    "chunk_size",
    "final_logit_softcapping",
    "logit_scale",
    "outputs",
]


def check_installed() -> None:
    """Raise ImportError unless TRL is there, is of the supported version and has the names used here."""
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(f"upge.integrations.trl needs trl, which is not installed: {INSTALL}") from None
    if not f"{version}.".startswith(f"{SUPPORTED}."):
        raise ImportError(_message(version, "whose formulas may differ"))
    for module_name, names in NAMES.items():
        module = importlib.import_module(module_name)
        for name in names:
            if not _has(module, name):
                raise ImportError(_message(version, f"which has no {module_name}.{name}"))
    function = importlib.import_module("trl.trainer.utils")._ChunkedLogProbFunction
    arguments = list(inspect.signature(function.forward).parameters)[1:]
    if arguments != LOGPROB_ARGUMENTS:
        raise ImportError(_message(version, f"whose log-probability function takes {', '.join(arguments)}"))


def _has(module: object, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def _message(version: str, reason: str) -> str:
    return f"upge.integrations.trl works with trl {SUPPORTED}; installed is {version}, {reason}: {INSTALL}"
