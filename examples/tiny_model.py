"""A language model small enough for a CPU: an embedding, a GRU and a head. Examples train it from random weights."""

import torch


class TinyModel(torch.nn.Module):
    def __init__(self, vocabulary: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocabulary, width)
        self.body = torch.nn.GRU(width, width, batch_first=True)
        self.lm_head = torch.nn.Linear(width, vocabulary, bias=False)

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, T, D) of token ids (B, T). The head is left to upge."""
        return self.body(self.embedding(ids))[0]

    @torch.no_grad()
    def sample(self, prompts: torch.Tensor, length: int) -> torch.Tensor:
        """Prompts (B, P) with `length` sampled tokens after each: (B, P + length)."""
        ids = prompts
        for _ in range(length):
            logits = self.lm_head(self.hidden(ids)[:, -1])
            ids = torch.cat([ids, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return ids
