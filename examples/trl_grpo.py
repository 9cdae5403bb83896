"""GRPO by TRL without logits: import GRPOTrainer from upge.integrations.trl instead of trl.

The task is to count up from a number. The reward is the share of right numbers. It needs pip install "trl==1.16.*".
Run it: python examples/trl_grpo.py
"""

import tempfile

import trl
from datasets import Dataset
from tiny_qwen import make_model, make_tokenizer
from upge.integrations.trl import GRPOTrainer  # the one line

NUMBERS, LENGTH, STEPS = 16, 3, 60


def share_right(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """TRL's signature of a reward function."""
    rewards = []
    for prompt, completion in zip(prompts, completions, strict=True):
        expected = [str((int(prompt) + step) % NUMBERS) for step in range(1, LENGTH + 1)]
        given = completion.split()
        rewards.append(sum(a == b for a, b in zip(given, expected, strict=False)) / LENGTH)
    return rewards


arguments = trl.GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    max_steps=STEPS,
    per_device_train_batch_size=128,  # completions: 16 questions with 8 each
    num_generations=8,
    max_completion_length=LENGTH,
    loss_type="dapo",
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
trainer = GRPOTrainer(
    make_model(NUMBERS),
    share_right,
    args=arguments,
    train_dataset=Dataset.from_dict({"prompt": [str(number) for number in range(NUMBERS)]}),
    processing_class=make_tokenizer(NUMBERS),
)
trainer.train()
rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
print(f"reward {rewards[0]:.2f} -> {rewards[-1]:.2f}")
