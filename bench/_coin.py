"""A reward for responses that mean nothing, for the verifier's processes: light to import."""


def coin(response: str, answer: str) -> bool:
    """Right for half of the responses, but never for one of four questions, which then go to SFT."""
    return int(answer) % 4 > 0 and int(response) % 2 > 0
