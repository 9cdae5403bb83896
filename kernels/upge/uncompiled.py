"""The eager policy loss, kept out of torch.compile's sight.

Import this module only once torch._dynamo is loaded: `torch.compiler.disable` imports it, with Triton, SymPy and NumPy,
which takes seconds.
"""

from collections.abc import Callable

import torch

from . import eager
from .inputs import HeadInputs, TokenArguments
from .outputs import PolicyLossOutput
from .token_loss import LossFormula

policy_loss: Callable[[HeadInputs, TokenArguments, LossFormula, float, str], PolicyLossOutput]
policy_loss = torch.compiler.disable(
    eager.policy_loss, reason="an objective made from a function needs autograd, and a compiled op has none inside"
)
