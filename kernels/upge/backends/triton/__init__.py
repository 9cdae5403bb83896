"""The `triton` backend: one pass over the logits, three GEMMs, 6 NVD in all, nothing computed twice.

The host code is in `workspace.py`; `kernels/` has one kernel per file, with its algebra above it:

    anchor          a near z_y                                 a gathered dot product
    logits          E = exp(z - a), z_y, sums of E, E (z - a)  GEMM, 2 NVD
    reanchor        rows with a bad anchor (nll > 40): logits runs again with another one
    rows            l, H
    coefficient     g, from the objectives of UPGE
    row_factor      scale, and the target's entry of E
    logit_gradient  in place of it where the entropy has a gradient
    hidden          dh = scale E W                             GEMM, 2 NVD
    weight          dW += E^T (scale h)                        GEMM, 2 NVD
    bias            db += sum of scale E
    split           dW, summed in three bytes per entry

Of the logits, only E of one chunk of tokens is stored, in bf16 for bf16 inputs. There are no atomics and no locks, tile
shapes do not depend on the number of tokens, and every sum has a fixed order.
"""

from .sharded_workspace import ShardedTritonWorkspace
from .workspace import TritonWorkspace

__all__ = ["ShardedTritonWorkspace", "TritonWorkspace"]
