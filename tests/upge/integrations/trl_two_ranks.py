"""One HPT run on one process or two, for test_trl_hpt.py: python trl_two_ranks.py MODEL OUTPUT ROWS_PER_RANK

Completions are fixed by prompt and place, so that all runs train on the same rows. Saves the gradient of each update.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import trl
from trl_world import SILENT, questions, tokenizer, train
from upge.integrations.trl import HPTTrainer


class Fixed(HPTTrainer):
    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        rank, count = self.accelerator.process_index, len(prompt_ids)
        completions = []
        for row, ids in enumerate(prompt_ids):
            generator = torch.Generator().manual_seed(sum(ids) * 64 + (rank * count + row) % 4)
            length = int(torch.randint(2, 12, (), generator=generator))
            completions.append(torch.randint(4, 40, (length,), generator=generator).tolist())
        return completions, None


def reward(row: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(number % 2 == 0 and sum(ids) % 3 == 0) for number, ids in zip(row, completion_ids, strict=True)]


def main(model: str, output: str, rows: int) -> None:
    args = trl.GRPOConfig(
        output,
        **SILENT,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=12,
        max_steps=2,
        beta=0.05,
        logging_steps=1,
        loss_type="grpo",
        shuffle_dataset=False,
        gradient_checkpointing=True,
    )
    trainer = Fixed(model, reward, args=args, train_dataset=questions(12), processing_class=tokenizer())
    grads, logs = train(trainer)
    if trainer.accelerator.is_main_process:
        torch.save((grads, logs), f"{output}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
