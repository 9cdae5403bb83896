"""The `torch` backend: plain PyTorch on any device, one chunk of tokens at a time. The full logits never exist.

The logits z of a chunk are computed in fp32. In place they become E = exp(z - a) with an anchor a, and then their own
gradient, which is multiplied into dh and dW. That costs 6 NVD in all, and only dh and dW are kept, the latter in fp32.
E serves the sums and the gradient, so each entry takes one exponential. The anchor is the row's maximum. Where the
maximum is the target,

    S = sum_{j != y} exp(z_j - z_y),   l = -log1p(S),   1 - p_y = -expm1(l),

so a confident token keeps its relative accuracy.

A token's log-probability does not depend on the other tokens. BLAS chooses its algorithm by the shape, so the last
chunk is padded to a number of rows at which results no longer change with it: on a CPU a multiple of 64, elsewhere a
full chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..inputs import HeadInputs, NeededGradients
from ..token_loss import Coefficients
from .workspace import Statistics, Workspace

# Bytes of the fp32 logits of one chunk, by device type, and of the fp32 copy of a slab of a bf16 or fp16 weight.
CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
SLAB_BYTES = 16 << 20
# The passes over a chunk's logits work on blocks of rows: on a CPU as many as fit the cache, elsewhere GRANULE.
BLOCK_BYTES = 1 << 20
GRANULE = 64
SWITCHED_OFF = -1e30


class ChunkedWorkspace(Workspace):
    """Holds E of one chunk, fp32."""

    def __init__(self, head: HeadInputs, needs: NeededGradients):
        device = head.hidden.device
        # With a sharded vocabulary every rank has the same chunks, since collectives combine them.
        vocabulary = head.vocabulary_size if head.shard is None else head.shard.largest
        super().__init__(head, needs, chunk_rows(vocabulary, device))
        self.on_cpu = device.type == "cpu"
        self.granule = GRANULE if self.on_cpu else self.chunk_rows
        self.block_rows = max(1, BLOCK_BYTES // (4 * vocabulary)) if self.on_cpu else GRANULE
        self.slab_rows = max(256, SLAB_BYTES // (4 * head.weight.shape[1]))
        if self.on_cpu and head.weight.dtype == torch.float32:
            self.slab_rows = head.vocabulary_size
        # Tensor cores multiply bf16 into fp32 sums. fp16 lacks the range for gradients, and a CPU has no such GEMM.
        self.mixed = not self.on_cpu and head.dtype == torch.bfloat16
        self.exps = torch.empty(0, head.vocabulary_size, dtype=torch.float32, device=device)
        # Shared by all blocks: a new buffer per block would fragment the heap by about a chunk's size.
        self.distances = torch.empty(self.block_rows, head.vocabulary_size, dtype=torch.float32, device=device)

    def forward(self, rows: Tensor, keep: bool) -> Statistics:
        """Fill `self.exps[:n]` with E. The buffer is there in any case, so `keep` makes no difference."""
        head, n = self.head, rows.numel()
        padded = -(-n // self.granule) * self.granule
        if self.exps.shape[0] < padded:
            self.exps = torch.empty(padded, head.vocabulary_size, dtype=torch.float32, device=rows.device)
        positions = torch.cat([rows, rows[-1:].expand(padded - n)])
        hidden = self._operand(head.hidden.index_select(0, positions))
        for slab in self._slabs():
            self._multiply(hidden, self._operand(head.weight[slab]).t(), self.exps[:padded, slab])
        blocks = zip(self.exps[:padded].split(self.block_rows), positions.split(self.block_rows), strict=True)
        sums = [torch.cat(column) for column in zip(*(self._normalise(z, part) for z, part in blocks), strict=True)]
        return self._statistics(*sums).at(slice(n))

    def _normalise(self, z: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        """Turn the products h W^T (m, V) of the tokens at `rows` into E, in place.

        Returns, each (m,): the anchor; the target's distance z_y - anchor and its exponential; and the sums of
        exp(z - anchor) and exp(z - anchor) (z - anchor) over all entries but the target.
        """
        head = self.head
        temperature = self._temperature(rows)
        if head.bias is not None:
            z += head.bias
        if head.softcap is not None:
            z.div_(head.softcap).tanh_().mul_(head.softcap)
        if not _is_one(temperature):
            z.div_(_column(temperature))
        targets, here = head.local_targets(rows)
        y = targets[:, None]
        anchor = z.amax(1, keepdim=True).clamp_(min=SWITCHED_OFF)
        distances = torch.sub(z, anchor, out=self.distances[: len(z)])
        distance = distances.gather(1, y).squeeze(1)
        if head.bias is not None:  # a bias of -inf switches an entry off; 0 * -inf would spoil the entropy
            distances.clamp_(min=SWITCHED_OFF)
        exps = torch.exp(distances, out=z)
        entry = exps.gather(1, y)
        target_share = entry.squeeze(1)
        if here is None:
            exps.scatter_(1, y, 0.0)
        else:  # the target may be an entry of another rank
            exps.scatter_(1, y, entry.masked_fill(here[:, None], 0.0))
            distance, target_share = distance.masked_fill(~here, -torch.inf), target_share.masked_fill(~here, 0.0)
        others, moment = exps.sum(1), distances.mul_(exps).sum(1)
        exps.scatter_(1, y, entry)
        return anchor.squeeze(1), distance, target_share, others, moment

    def _statistics(
        self, anchor: Tensor, distance: Tensor, target_share: Tensor, others: Tensor, moment: Tensor
    ) -> Statistics:
        """From what `_normalise` returned for each token of a chunk."""
        top = anchor
        if self.head.shard is not None:
            shift, distance, others, moment = self.head.shard.combine(anchor, distance, others, moment)
            top, target_share = anchor - shift, distance.exp()
        total = target_share + others
        log_total = torch.where(distance == 0, others.log1p(), total.log())
        entropy = log_total - (moment + target_share * distance) / total
        return Statistics(
            logprobs=distance - log_total,
            entropy=entropy,
            lse=top + log_total,
            anchor=anchor,
            log_total=log_total if self.head.shard is None else log_total - shift,
            top1=distance == 0,
        )

    def backward(self, rows: Tensor, statistics: Statistics, coefficients: Coefficients) -> None:
        """Turn the chunk's E into d loss / d (h W^T + b), and multiply it into the gradients."""
        if self.on_cpu:  # clipped tokens leave the chunk; on a GPU, counting them would make the CPU wait
            kept = self._move_to_start(coefficients.nonzero())
            rows, statistics, coefficients = rows[kept], statistics.at(kept), coefficients.at(kept)
        for start in range(0, rows.numel(), self.block_rows):
            block = slice(start, min(start + self.block_rows, rows.numel()))
            self._logit_gradient(self.exps[block], rows[block], statistics.at(block), coefficients.at(block))
        self._accumulate(rows, self.exps[: rows.numel()])

    def _move_to_start(self, kept: Tensor) -> Tensor:
        """Make E's rows `kept`, ascending, its first ones, by moving the last of them into the gaps between the others.

        Returns them in their new order.
        """
        order = torch.arange(kept.numel(), device=kept.device)
        gaps = torch.isin(order, kept, invert=True).nonzero().squeeze(1)
        last = kept[kept >= kept.numel()]
        for to, source in zip(gaps.split(self.block_rows), last.split(self.block_rows), strict=True):
            self.exps[to] = self.exps[source]
        return order.index_copy_(0, gaps, last)

    def _logit_gradient(self, exps: Tensor, rows: Tensor, statistics: Statistics, coefficients: Coefficients) -> None:
        """Overwrite E (m, V) of the tokens at `rows` with d loss / d (h W^T + b).

        With p the softmax, d loss / d z_j = -p_j (g - k + q (log p_j + H)) for j != y, and
        d loss / d z_y = g (1 - p_y) + k p_y - q p_y (l + H).
        """
        head, l, entropy = self.head, statistics.logprobs, statistics.entropy
        targets, here = head.local_targets(rows)
        y = targets[:, None]
        temperature = self._temperature(rows)
        g, q, k = coefficients.g, coefficients.q, coefficients.k
        at_target, at_others = -torch.expm1(l) * g, -g
        if k is not None:
            at_target, at_others = at_target + k * l.exp(), k - g
        if q is not None:
            at_target = at_target - q * l.exp() * (l + entropy)
        if q is not None or head.softcap is not None:
            # z - anchor again. Where E is too small to tell, p is 0, and only the target's entry has a gradient.
            distances = torch.clamp(exps, min=torch.finfo(torch.float32).tiny, out=self.distances[: len(exps)]).log_()
        if head.softcap is not None:
            # u = cap tanh(raw / cap) has slope 1 - (u / cap)^2, and u = z T.
            exps *= 1 - ((distances + statistics.anchor[:, None]) * (_column(temperature) / head.softcap)).square_()
            at_target = at_target * (1 - ((l + statistics.lse) * (temperature / head.softcap)).square_())
        inverse_total = torch.exp(-statistics.log_total)[:, None]
        if q is None:
            exps *= at_others[:, None] * inverse_total
        else:
            distances += (entropy - statistics.log_total)[:, None]
            exps *= distances.mul_(-q[:, None]).add_(at_others[:, None]).mul_(inverse_total)
        if here is not None:
            at_target = at_target.where(here, exps.gather(1, y).squeeze(1))
        exps.scatter_(1, y, at_target[:, None])
        if not _is_one(temperature):
            exps /= _column(temperature)

    def _accumulate(self, rows: Tensor, gradient: Tensor) -> None:
        """Multiply d loss / d (h W^T + b), (n, V) fp32, into dh of the tokens at `rows`, dW and db."""
        sums = self.gradients
        if sums.bias is not None:
            sums.bias += gradient.sum(0)
        if (sums.hidden is None and sums.weight is None) or not rows.numel():
            return
        gradient = gradient.to(torch.bfloat16) if self.mixed else gradient
        hidden = self._operand(self.head.hidden.index_select(0, rows))
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32) if sums.hidden is not None else None
        for slab in self._slabs():
            if hidden_gradient is not None:
                self._multiply(gradient[:, slab], self._operand(self.head.weight[slab]), hidden_gradient, add=True)
            if isinstance(sums.weight, Tensor):
                self._multiply(gradient[:, slab].t(), hidden, sums.weight[slab], add=True)
        if hidden_gradient is not None and self.head.shard is not None:
            self.head.shard.sum(hidden_gradient)
        if sums.hidden is not None and hidden_gradient is not None:
            sums.hidden.index_copy_(0, rows, hidden_gradient.to(sums.hidden.dtype))

    def _temperature(self, rows: Tensor) -> float | Tensor:
        temperature = self.head.temperature
        return temperature.index_select(0, rows) if isinstance(temperature, Tensor) else float(temperature)

    def _slabs(self) -> Iterator[slice]:
        """Ranges of vocabulary entries that are multiplied at a time."""
        for start in range(0, self.head.vocabulary_size, self.slab_rows):
            yield slice(start, min(start + self.slab_rows, self.head.vocabulary_size))

    def _operand(self, x: Tensor) -> Tensor:
        return x if self.mixed else x.float()

    def _multiply(self, a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
        """out = a b, or out += a b, in fp32."""
        if self.mixed:
            product = torch.mm(a, b, out_dtype=torch.float32)
            if add:
                out.add_(product)
            else:
                out.copy_(product)
        elif add:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Rows of a chunk: as many multiples of 64 as fit the budget. Depends only on V, never on N."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return min(4096, max(1, budget // (4 * vocabulary * GRANULE)) * GRANULE)


def _is_one(temperature: float | Tensor) -> bool:
    return isinstance(temperature, float) and temperature == 1.0


def _column(x: float | Tensor) -> float | Tensor:
    return x[:, None] if isinstance(x, Tensor) else x
