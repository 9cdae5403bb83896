"""SFT on all assistant turns: the loss of transformers with labels of -100, however rows are packed."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from hpt.config.recipe import build_config
from hpt.data.conversation import Conversation
from hpt.data.questions import Question
from hpt.method.experience import Experience
from hpt.method.gate import Decision
from hpt.method.micro_batches import micro_batches, packed_batch, padded_batch
from hpt.method.rows import token_rows
from hpt.model.policy import Policy

SETTINGS = {"output": "o", "steps": 1, "model": {"path": "m"}, "data": {"train": "t", "loss_on": "all"}}
TWO_TURNS = Conversation([([3, 4, 5], False), ([6, 7, 1], True), ([8, 3], False), ([9, 1], True)])
OTHER = Conversation(
    [([4, 4], False), ([5, 1], True), ([8, 8, 8], False), ([2, 6, 1], True), ([9], False), ([7, 1], True)]
)
SINGLE = ([3, 9, 4], [8, 2, 1])  # prompt and demonstration of a question without earlier turns


def experiences() -> list[Experience]:
    imitate = Decision(0.0, 1.0, 0.0)
    found = [
        Experience(Question(str(number), ""), [3], decision=imitate, demonstration=[1], conversation=conversation)
        for number, conversation in enumerate((TWO_TURNS, OTHER))
    ]
    prompt, demonstration = SINGLE
    return [*found, Experience(Question("2", ""), prompt, decision=imitate, demonstration=demonstration)]


def labels_and_ids() -> list[tuple[list[int], list[int]]]:
    rows = []
    for parts in (TWO_TURNS.parts, OTHER.parts, [(SINGLE[0], False), (SINGLE[1], True)]):
        ids = [token for part, _ in parts for token in part]
        labels = [token if trained else -100 for part, trained in parts for token in part]
        rows.append((ids, labels))
    return rows


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_the_gradient_is_that_of_transformers_with_labels(aggregation: str) -> None:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=11,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    settings = build_config(SETTINGS | {"gate": {"kind": "sft"}, "loss": {"aggregation": aggregation}}, source="test")
    trained = sum(label != -100 for _, labels in labels_and_ids() for label in labels)
    total = torch.zeros(())
    for ids, labels in labels_and_ids():
        own = sum(label != -100 for label in labels)
        mean = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss
        total = total + mean * (own / trained if aggregation == "token" else 1 / 3)
    total.backward()
    expected = torch.cat([parameter.grad.flatten().clone() for parameter in model.parameters()])

    rows = token_rows(experiences(), settings)
    assert [row.response_length for row in rows] == [5, 7, 3]
    policy = Policy(model, settings)
    for batches in (
        [padded_batch(rows)],
        [packed_batch(rows)],
        [padded_batch([row]) for row in rows],
        micro_batches(rows, 24, packed=True),
        micro_batches(rows, 26, packed=False),
    ):
        model.zero_grad()
        losses = [policy.loss(batch).loss for batch in batches]
        sum(losses).backward()
        found = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        assert ((found - expected).norm() / expected.norm()).item() < 2e-5
        assert sum(loss.item() for loss in losses) == pytest.approx(total.item(), rel=1e-5)


def test_masked_tokens_are_no_targets() -> None:
    (row, *_) = token_rows(experiences(), build_config(SETTINGS, source="test"))
    for batch in (padded_batch([row, row]), packed_batch([row, row])):
        assert batch.targets.tolist() == [6, 7, 1, 9, 1] * 2
        flat = batch.input_ids.flatten()
        assert flat[batch.positions].tolist() == [5, 6, 7, 3, 9] * 2
        assert batch.sequence_ids.tolist() == [0] * 5 + [1] * 5
