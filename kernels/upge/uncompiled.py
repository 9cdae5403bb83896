"""The eager functions, kept out of torch.compile's sight.

Import this module only once torch._dynamo is loaded: `torch.compiler.disable` imports it, with Triton, SymPy and NumPy,
which takes seconds.
"""

import torch

from . import eager

REASON = "a user-defined objective needs autograd and a process group its collectives: a compiled op has neither inside"

policy_loss = torch.compiler.disable(eager.policy_loss, reason=REASON)
linear_logprobs = torch.compiler.disable(eager.linear_logprobs, reason=REASON)
