"""The `triton` backend: one pass over the logits, three GEMMs, 6 NVD in all, nothing computed twice.

`workspace.py` has the order of launches, `launch.py` the arguments of the GEMMs. `kernels/` has one kernel per file,
with its algebra above it:

    gather          a chunk's inputs, and the anchor a near z_y
    logits          E = exp(z - a), z_y, sums of E, E (z - a)  GEMM, 2 NVD
    reanchor, redo  rows with a bad anchor (nll > 40), computed again with another one
    rows            l, H
    coefficient     g, from the objectives of UPGE
    row_factor      the factor of each row, and the target's entry of E
    logit_gradient  in place of it where the entropy has a gradient
    hidden          E W                                        GEMM, 2 NVD
    scatter         dh = factor E W
    scaled_hidden   factor h
    weight          dW += E^T (factor h)                       GEMM, 2 NVD
    bias            db += sum of factor E
    split           dW, summed in three bytes per entry

Each GEMM also has a kernel that loads by tensor descriptors; `backends/plan.py` chooses. Their epilogues are shared
(`logits_epilogue`, `accumulate`).

Of the logits, only E of one chunk of tokens is stored, in bf16 for bf16 inputs. There are no atomics and no locks, tile
shapes do not depend on the number of tokens, and every sum has a fixed order.
"""

from .sharded_workspace import ShardedTritonWorkspace
from .workspace import TritonWorkspace

__all__ = ["ShardedTritonWorkspace", "TritonWorkspace"]
