"""Hybrid Post-Training in a TRL set-up: a dataset with demonstrations, your reward functions, your GRPOConfig.

The task is to count up from a number. A question of which no completion is right is trained on its demonstration
(SFT), else on its completions (GRPO). It needs pip install "trl==1.16.*". Run it: python examples/trl_hpt.py
"""

import tempfile

import trl
from datasets import Dataset
from tiny_qwen import make_model, make_tokenizer
from upge.integrations.trl import HPTTrainer

NUMBERS, LENGTH, STEPS = 16, 3, 40


def count_up(start: int) -> str:
    return " ".join(str((start + step) % NUMBERS) for step in range(1, LENGTH + 1))


def is_right(completions: list[str], demonstration: list[str], **columns: object) -> list[float]:
    """TRL's signature of a reward function: columns of the dataset are arguments."""
    return [float(completion == answer) for completion, answer in zip(completions, demonstration, strict=True)]


questions = Dataset.from_dict(
    {
        "prompt": [str(number) for number in range(NUMBERS)],
        "demonstration": [count_up(number) for number in range(NUMBERS)],
    }
)
arguments = trl.GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    max_steps=STEPS,
    per_device_train_batch_size=64,  # completions: 16 questions with 8 each, in two micro-batches
    gradient_accumulation_steps=2,
    num_generations=8,
    max_completion_length=LENGTH + 1,  # room for the end of the sequence
    learning_rate=5e-3,
    lr_scheduler_type="constant",
    logging_steps=5,
    gradient_checkpointing=False,
    bf16=False,
    use_cpu=True,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
trainer = HPTTrainer(
    make_model(NUMBERS),
    is_right,
    args=arguments,
    train_dataset=questions,
    processing_class=make_tokenizer(NUMBERS),
    gamma=0.0,
)
trainer.train()
lines = [line for line in trainer.state.log_history if "reward" in line]
for line in lines:
    print(f"epoch {line['epoch']:2.0f}  accuracy {line['reward']:.2f}  sent to SFT {line['gate/sft_share']:.2f}")
