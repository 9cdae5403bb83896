"""What a user of TRL's GRPOTrainer has, a list of questions and reward functions, handed to `hpt.train` as it is.

The first function compares with the column `solution`; the second counts distinct characters, and None says that it
does not apply; the third is TRL's own. Run it in this folder: python trl_rewards_in_python.py
"""

import tiny_sums
from trl.rewards import get_soft_overlong_punishment

import hpt


def right(completions, solution, **kwargs):
    return [float(completion[0]["content"] == gold) for completion, gold in zip(completions, solution, strict=True)]


def unique_characters(completions, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    return [len(set(text)) if text else None for text in texts]


questions = [
    {"prompt": [{"role": "user", "content": f"{a}+{b}="}], "solution": str(a + b)} for a in range(5) for b in range(5)
]

if __name__ == "__main__":
    run = hpt.train(
        model="runs/trl_rewards_in_python/start",
        prepare=tiny_sums.prepare_model,  # makes the model; yours exists
        data=questions,
        rewards=[right, (unique_characters, 0.1), get_soft_overlong_punishment(4, 2)],
        method="grpo",
        prompt={"style": "plain"},
        rollout={"n": 8, "max_tokens": 4},
        optimizer={"lr": 0.01},
        batch={"questions": 16},
        output="runs/trl_rewards_in_python",
        steps=12,
    )
    print(f"{run}: mean reward {run.metrics[-1]['reward/mean']:.2f}")
