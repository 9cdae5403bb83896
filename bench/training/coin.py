"""Verifiers for random responses. Cheap to import, since every process of the verifier's pool does."""


def coin(response: str, answer: str) -> bool:
    """Whether a response is correct: half of them are, but none for every fourth question, which then goes to SFT."""
    return int(answer) % 4 > 0 and int(response) % 2 > 0


def fair_coin(response: str, answer: str) -> bool:
    """Whether a response is correct: half of them are, to every question."""
    return int(response) % 2 > 0
