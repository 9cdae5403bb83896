"""The fused loss inside TRL 1.16.

    from upge.integrations.trl import GRPOTrainer      # in place of trl.GRPOTrainer: one fused pass
    from upge.integrations.trl import SFTTrainer       # in place of trl.SFTTrainer
    from upge.integrations.trl import HPTTrainer       # GRPO where a question is solved, SFT where it is not
    from upge.integrations.trl import use_logprobs     # any other trainer of TRL: its formulas, our log-probabilities

Raises ImportError where TRL is missing or of another version.
"""

from .installed import check_installed

check_installed()

from .grpo import GRPOTrainer  # noqa: E402
from .hpt import HPTTrainer  # noqa: E402
from .logprobs import use_logprobs  # noqa: E402
from .sft import SFTTrainer  # noqa: E402

__all__ = ["GRPOTrainer", "HPTTrainer", "SFTTrainer", "use_logprobs"]
