"""What tests of hpt eval share: quick options, and what a run wrote."""

import json

QUICK = ["--style", "plain", "--max-tokens", "8", "--verifier", "rewards:has_a_digit"]


def results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
