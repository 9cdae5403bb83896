"""A user-defined gate: `gate.function` of own_gate.yaml. It mixes both signals instead of switching between them.

It is called with P, the mean score of a question's rollouts, and returns (alpha, beta): how much RL on the rollouts and
how much SFT on the demonstration the question gets (arXiv 2509.04419, equations 9 to 11). A third number is for
off-policy RL on the demonstration, which has beta where it is missing. Run it in this folder: hpt train own_gate.yaml
"""


def gate(P: float) -> tuple[float, float]:
    """More RL the better the policy solves the question, and SFT for the rest."""
    return P, 1 - P
