"""A user-defined verifier: `verify.function` of own_reward.yaml. It gives partial credit for a number.

It says how right a response is, which the gate reads, too. trl_rewards.py has rewards on top of that, in TRL's form.

It is called as score(response, answer) in worker processes with limits of time and memory, so the module should be
light to import. A score is a bool or a number from 0 to 1: 1 is correct, less is incorrect. What the function raises
ends the run. Run it in this folder: hpt train own_reward.yaml
"""


def score(response: str, answer: str) -> float:
    """1 for the answer, 0.5 for another number, else 0."""
    text = response.strip()
    if text == answer:
        return 1.0
    return 0.5 if text.isdigit() else 0.0
