"""The chunked backend in plain PyTorch: any device, full logits never exist.

Tokens are processed in chunks of rows. A chunk's logits are made in fp32, turned in place into their distance from an
anchor and then into their own gradient, which is multiplied into dh and dW at once: 6 NVD in all, and nothing is kept
but dh and dW, the latter in fp32. The anchor is the row's maximum; where that is the target,

    S = sum_{j != y} exp(z_j - z_y),   l = -log1p(S),   1 - p_y = -expm1(l),

so a confident token keeps its relative accuracy.

A row's log-probability never depends on the other rows: BLAS picks its kernels by shape, so a chunk's last rows are
padded to a shape whose results do not change with it (on CPU a multiple of 64 rows, elsewhere the full chunk).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..inputs import Head, Needs
from .workspace import Forward, Workspace

# Bytes of fp32 logits alive at once, by device type; and of the fp32 copy of a bf16/fp16 weight's slab.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
SLAB_BYTES = 16 << 20
# The passes over a chunk's logits go through blocks of rows: on CPU as many as stay in cache, elsewhere GRANULE.
BLOCK_BYTES = 1 << 20
GRANULE = 64
SWITCHED_OFF = -1e30


class Chunked(Workspace):
    """The workspace of plain PyTorch: fp32 logits of one chunk."""

    def __init__(self, head: Head, needs: Needs):
        device = head.hidden.device
        super().__init__(head, needs, chunk_rows(head.vocabulary, device))
        self.on_cpu = device.type == "cpu"
        self.granule = GRANULE if self.on_cpu else self.chunk_rows
        self.block_rows = max(1, BLOCK_BYTES // (4 * head.vocabulary)) if self.on_cpu else GRANULE
        self.slab_rows = max(256, SLAB_BYTES // (4 * head.weight.shape[1]))
        if self.on_cpu and head.weight.dtype == torch.float32:
            self.slab_rows = head.vocabulary
        # Tensor cores multiply bf16 into fp32 sums; fp16 lacks the range for gradients, and the CPU has no such GEMM.
        self.mixed = not self.on_cpu and head.weight.dtype == torch.bfloat16
        self.logits = torch.empty(0, head.vocabulary, dtype=torch.float32, device=device)
        # One for all blocks: a new one each time leaves holes in the heap, of a chunk's size in all.
        self.exponentials = torch.empty(self.block_rows, head.vocabulary, dtype=torch.float32, device=device)

    def forward(self, rows: Tensor, keep: bool) -> Forward:
        """Fill `self.logits[:n]` with z - anchor of the positions `rows`, kept or not."""
        head, n = self.head, rows.numel()
        padded = -(-n // self.granule) * self.granule
        if self.logits.shape[0] < padded:
            self.logits = torch.empty(padded, head.vocabulary, dtype=torch.float32, device=rows.device)
        positions = torch.cat([rows, rows[-1:].expand(padded - n)])
        hidden = self._operand(head.hidden.index_select(0, positions))
        for slab in self._slabs():
            self._multiply(hidden, self._operand(head.weight[slab]).t(), self.logits[:padded, slab])
        blocks = zip(self.logits[:padded].split(self.block_rows), positions.split(self.block_rows), strict=True)
        return Forward.cat([self._normalise(z, part) for z, part in blocks], rows.device).at(slice(n))

    def _normalise(self, z: Tensor, rows: Tensor) -> Forward:
        """Products h W^T (m, V) of the positions `rows` become z - anchor, in place."""
        head = self.head
        temperature = self._temperature(rows)
        if head.bias is not None:
            z += head.bias
        if head.softcap is not None:
            z.div_(head.softcap).tanh_().mul_(head.softcap)
        if not _is_one(temperature):
            z.div_(_column(temperature))
        y = head.targets.index_select(0, rows).long()[:, None]
        anchor = z.amax(1, keepdim=True)
        z -= anchor
        distance = z.gather(1, y).squeeze(1)
        if head.bias is not None:  # entries that a bias of -inf switches off have 0 * -inf in the entropy
            z.clamp_(min=SWITCHED_OFF)
        exponentials = torch.exp(z, out=self.exponentials[: len(z)])
        target_share = exponentials.gather(1, y).squeeze(1)
        exponentials.scatter_(1, y, 0.0)
        others = exponentials.sum(1)
        mean_distance = exponentials.mul_(z).sum(1) + target_share * distance
        total = target_share + others
        log_total = torch.where(distance == 0, others.log1p(), total.log())
        return Forward(distance - log_total, log_total - mean_distance / total, anchor.squeeze(1), log_total)

    def backward(self, rows: Tensor, forward: Forward, g: Tensor, q: Tensor | None) -> None:
        """Turn the chunk's z - anchor into d loss / d (h W^T + b) and multiply it into the gradients."""
        if self.on_cpu:
            # Clipped tokens leave the chunk before the GEMMs. Elsewhere counting them would make the device wait.
            moves = g != 0 if q is None else (g != 0) | (q != 0)
            kept = moves.nonzero().squeeze(1)
        else:
            kept = torch.arange(rows.numel(), device=rows.device)
        n, whole = kept.numel(), kept.numel() == rows.numel()
        for start in range(0, n, self.block_rows):
            block = kept[start : start + self.block_rows]
            target = slice(start, start + block.numel())
            z = self.logits[target] if whole else self.logits.index_select(0, block)
            slopes = g[block], None if q is None else q[block]
            gradient = self._logit_gradient(z, rows[block], forward.at(block), *slopes)
            if not whole:
                self.logits[target] = gradient
        self._accumulate(rows[kept], self.logits[:n])

    def _logit_gradient(self, z: Tensor, rows: Tensor, forward: Forward, g: Tensor, q: Tensor | None) -> Tensor:
        """Overwrite z (m, V), holding z - anchor of the positions `rows` (m,), with the gradient of the raw logits."""
        head, m = self.head, forward
        y = head.targets.index_select(0, rows).long()[:, None]
        temperature = self._temperature(rows)
        cap_slope = None
        if head.softcap is not None:
            # u = cap tanh(raw / cap) has slope 1 - (u / cap)^2, and u = z T.
            cap_slope = 1 - ((z + m.anchor[:, None]) * (_column(temperature) / head.softcap)).square_()
        z -= m.log_total[:, None]
        if q is None:
            gradient = z.exp_().mul_(-g[:, None])
            at_target = -torch.expm1(m.logprobs) * g
        else:
            scale = (z + m.entropy[:, None]).mul_(-q[:, None]).sub_(g[:, None])
            gradient = z.exp_().mul_(scale)
            at_target = -torch.expm1(m.logprobs) * g - q * m.logprobs.exp() * (m.logprobs + m.entropy)
        gradient.scatter_(1, y, at_target[:, None])
        if cap_slope is not None:
            gradient *= cap_slope
        return gradient if _is_one(temperature) else gradient.div_(_column(temperature))

    def _accumulate(self, rows: Tensor, gradient: Tensor) -> None:
        """Multiply d loss / d (h W^T + b), (n, V) fp32, into dh of the positions `rows`, dW and db."""
        sums = self.gradients
        if sums.bias is not None:
            sums.bias += gradient.sum(0)
        if (sums.hidden is None and sums.weight is None) or not rows.numel():
            return
        gradient = gradient.to(torch.bfloat16) if self.mixed else gradient
        hidden = self._operand(self.head.hidden.index_select(0, rows))
        into_hidden = torch.zeros_like(hidden, dtype=torch.float32) if sums.hidden is not None else None
        for slab in self._slabs():
            if into_hidden is not None:
                self._multiply(gradient[:, slab], self._operand(self.head.weight[slab]), into_hidden, add=True)
            if isinstance(sums.weight, Tensor):
                self._multiply(gradient[:, slab].t(), hidden, sums.weight[slab], add=True)
        if sums.hidden is not None and into_hidden is not None:
            sums.hidden.index_copy_(0, rows, into_hidden.to(sums.hidden.dtype))

    def _temperature(self, rows: Tensor) -> float | Tensor:
        t = self.head.temperature
        return t.index_select(0, rows) if isinstance(t, Tensor) else float(t)

    def _slabs(self) -> Iterator[slice]:
        for start in range(0, self.head.vocabulary, self.slab_rows):
            yield slice(start, min(start + self.slab_rows, self.head.vocabulary))

    def _operand(self, x: Tensor) -> Tensor:
        return x if self.mixed else x.float()

    def _multiply(self, a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
        if self.mixed:
            product = torch.mm(a, b, out_dtype=torch.float32)
            out.add_(product) if add else out.copy_(product)
        elif add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of a chunk: as many multiples of 64 as fit the budget. It depends on V alone, never on N."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return min(4096, max(1, budget // (4 * vocabulary * GRANULE)) * GRANULE)


def _is_one(temperature: float | Tensor) -> bool:
    return isinstance(temperature, float) and temperature == 1.0


def _column(x: float | Tensor) -> float | Tensor:
    return x[:, None] if isinstance(x, Tensor) else x
