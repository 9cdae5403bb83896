"""HPTTrainer: the gate, the rows it trains, and its gradient against the formula written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
import trl_two_ranks
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl_world import SILENT, assert_same_gradient, gradient, make_model, options, questions, tokenizer, train
from upge.integrations.trl import GRPOTrainer, HPTTrainer

GROUP = 4


def reward(prompts: list[Any], row: list[int], completions: list[Any], **_: Any) -> list[float | None]:
    """Questions of even rows are solved by some completions, those of odd rows by none."""
    return [float(number % 2 == 0 and index % GROUP in (1, 2)) for index, number in enumerate(row)]


def config(folder: Path, **settings: Any) -> trl.GRPOConfig:
    usual = {
        "output_dir": str(folder / "run"),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "num_generations": GROUP,
        "max_completion_length": 12,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "seed": 1,
    }
    return trl.GRPOConfig(**SILENT, **usual | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


def make(folder: Path, output: Path, dataset: Any = None, kind: Any = HPTTrainer, **settings: Any) -> Any:
    hpt = {name: settings.pop(name) for name in ("gamma", "sft_coef") if name in settings}
    dataset = questions() if dataset is None else dataset
    arguments = {"args": config(output, **settings), "train_dataset": dataset, "processing_class": tokenizer()}
    return kind(str(folder), reward, **arguments, **hpt)


class Recorded(HPTTrainer):
    """Keeps every micro-batch, and the model's folder."""

    def __init__(self, model: str, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        self.batches: list[dict[str, Any]] = []
        self.folder = model

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self.batches.append(dict(inputs))
        return super()._compute_loss(model, inputs)


def logprobs_and_entropies(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    length = batch["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=attention).logits[:, -length - 1 : -1]
    every = logits.log_softmax(-1)
    return every.gather(-1, batch["completion_ids"].unsqueeze(-1)).squeeze(-1), -(every.exp() * every).sum(-1)


def written_out(trainer: Recorded, sft_coef: float, beta: float, entropy_coef: float) -> tuple[float, torch.Tensor]:
    """Value and gradient of the first update, with one model call and plain autograd for each micro-batch."""
    model = AutoModelForCausalLM.from_pretrained(trainer.folder)
    update = trainer.batches[: trainer.args.gradient_accumulation_steps]
    rows, value = sum(len(batch["completion_mask"]) for batch in update), 0.0
    for batch in update:
        l, entropy = logprobs_and_entropies(model, batch)
        old = batch.get("old_per_token_logps", l.detach())
        mask, sft = batch["completion_mask"].float(), batch["is_demonstration"].float().unsqueeze(1)
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        ratio = (l - old).exp()
        advantages = batch["advantages"].unsqueeze(1) * (1 - sft)
        surrogate = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        loss = surrogate / (lengths * rows) - sft * l * sft_coef * GROUP / (lengths * rows)
        if beta:
            gap = batch["ref_per_token_logps"] - l
            loss = loss + beta * (gap.exp() - gap - 1) * ratio / (lengths * rows)
        loss = loss - entropy_coef * entropy / (mask.sum().clamp(min=1) * len(update))
        loss = (loss * mask).sum()
        loss.backward()
        value += loss.item()
    return value, gradient(model)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sft_coef": 0.3},
        {"beta": 0.05, "entropy_coef": 0.02},
        {"off_policy_mask_threshold": 1e9},  # falls back to log-probabilities, and masks no sequence
        {"off_policy_mask_threshold": 1e9, "gamma": 0.5},  # failed questions have some rewards
        {"gamma": 0.5},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_formula(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    trainer = make(folder, tmp_path, kind=Recorded, loss_type="grpo", **settings)
    grads, logs = train(trainer)
    assert logs[0]["gate/sft_share"] in ((1.0,) if "gamma" in settings else (0.25, 0.5, 0.75))
    value, expected = written_out(
        trainer, settings.get("sft_coef", 1.0), settings.get("beta", 0.0), settings.get("entropy_coef", 0.0)
    )
    assert_same_gradient(grads[0], expected)
    assert logs[0]["loss"] == pytest.approx(value, abs=1e-5)


def test_a_failed_question_becomes_its_demonstration(folder: Path, tmp_path: Path) -> None:
    trainer = make(folder, tmp_path, kind=Recorded, num_iterations=2, beta=0.1, max_steps=2)
    train(trainer)
    names = trainer.processing_class.convert_ids_to_tokens
    demonstrations = {row["prompt"]: row["demonstration"] for row in questions()}
    solved = {row["prompt"]: row["row"] % 2 == 0 for row in questions()}
    start = AutoModelForCausalLM.from_pretrained(folder)
    kept, dropped, seen = 0, 0, []
    assert len(trainer.batches) == 8  # both iterations train on the same rows
    for batch in trainer.batches[:4]:
        for row in range(4):
            prompt = "".join(names(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]))
            completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
            if batch["is_demonstration"][row]:
                assert not solved[prompt]
                assert "".join(names(completion)) == demonstrations[prompt] + "<eos>"
                seen.append(prompt)
            elif solved[prompt]:
                kept += 1
                assert len(completion) > 0
                assert batch["advantages"][row] != 0
            else:
                dropped += 1
                assert len(completion) == 0
                assert batch["advantages"][row] == 0
        # The other log-probabilities belong to the tokens that are trained.
        with torch.no_grad():
            l, _ = logprobs_and_entropies(start, batch)
        trained = batch["completion_mask"].bool()
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            torch.testing.assert_close(batch[name][trained], l[trained], atol=1e-5, rtol=1e-5)
    assert len(seen) == len(set(seen)) > 0
    assert kept + dropped + len(seen) == 16
    assert dropped == (GROUP - 1) * len(seen)
    share = trainer.state.log_history[0]["gate/sft_share"]
    assert share == len(seen) / 4


def test_without_failed_questions_it_is_grpo(folder: Path, tmp_path: Path) -> None:
    solved = questions().filter(lambda row: row["row"] % 2 == 0)
    runs = [train(make(folder, tmp_path, solved, kind=kind)) for kind in (HPTTrainer, GRPOTrainer)]
    for ours, theirs in zip(runs[0][0], runs[1][0], strict=True):
        assert torch.equal(ours, theirs)
    assert runs[0][1][0].pop("gate/sft_share") == 0
    assert runs[0][1][0] == runs[1][1][0]


def test_gamma_is_compared_with_the_weighted_mean_reward(folder: Path, tmp_path: Path) -> None:
    """Half of the completions of every second question earn 1, so P is 0.5 or 0."""
    trainer = make(folder, tmp_path, gamma=0.5)
    for weight, share in ((1.0, 1.0), (1.1, 0.5)):
        trainer.reward_weights = torch.tensor([weight])
        rewards = torch.tensor([[0.0], [1.0], [1.0], [0.0], [0.0], [0.0], [0.0], [0.0]])
        trainer._choose_signals(rewards, 8)
        assert trainer._metrics["train"]["gate/sft_share"].pop() == share
    unknown = float("nan")
    for rewards, share in (([unknown] * 8, 1.0), ([unknown, 1.0, unknown, unknown] + [0.0] * 4, 0.5)):
        trainer._choose_signals(torch.tensor(rewards).unsqueeze(1), 8)
        assert trainer._metrics["train"]["gate/sft_share"].pop() == share


@pytest.mark.slow
def test_two_ranks_have_the_gradient_of_one(folder: Path, tmp_path: Path) -> None:
    """Three questions of four completions: the second question is spread over both ranks."""
    script = Path(__file__).parent / "trl_two_ranks.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(script), str(folder), str(tmp_path / "two"), "3"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    trl_two_ranks.main(str(folder), str(tmp_path / "one"), 6)
    (grads, logs), (other_grads, other_logs) = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    for one, two in zip(grads, other_grads, strict=True):
        assert_same_gradient(two, one, 1e-6)
    for name in ("gate/sft_share", "reward", "loss"):
        assert [line.get(name) for line in logs] == pytest.approx([line.get(name) for line in other_logs], nan_ok=True)
    assert 0 < logs[0]["gate/sft_share"] < 1


def test_sampled_log_probabilities_of_a_demonstration_are_unknown(folder: Path, tmp_path: Path) -> None:
    """With vLLM's correction, the importance ratio of a demonstration is 1, as nothing sampled it."""

    class Sampled(Recorded):
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with options(self, use_vllm=False):
                completions, _ = super()._generate_single_turn(*args, **kwargs)
            return completions, [[-3.0] * len(ids) for ids in completions]

    trainer = make(folder, tmp_path, kind=Sampled, max_steps=1)
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    trainer.vllm_importance_sampling_mode = "token_truncate"
    train(trainer)
    ratios = [batch["importance_sampling_ratio"][batch["is_demonstration"]] for batch in trainer.batches]
    assert sum(len(ratio) for ratio in ratios) > 0
    assert all((ratio == 1).all() for ratio in ratios)


def test_conversations_are_rendered_by_the_chat_template(folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{row}+1="}],
            "demonstration": [{"role": "assistant", "content": f"{row + 1}"}],
            "row": 1,
        }
        for row in range(4)
    ]
    for dataset in (rows, [{**row, "demonstration": row["demonstration"][0]["content"]} for row in rows]):
        trainer = make(folder, tmp_path, Dataset.from_list(dataset), kind=Recorded, max_steps=1)
        train(trainer)
        batch = trainer.batches[0]
        row = int(batch["is_demonstration"].nonzero()[0])
        names = trainer.processing_class.convert_ids_to_tokens(
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)[row]
        )
        text = "".join(name for name in names if name != "<pad>")
        number = text.removeprefix("<user>")[0]
        assert text == f"<user>{number}+1=<eos> <bot>{int(number) + 1}<eos>"


def test_evaluation_is_trls(folder: Path, tmp_path: Path) -> None:
    trainer = make(folder, tmp_path, per_device_eval_batch_size=4)
    metrics = trainer.evaluate(questions().remove_columns("demonstration"))
    assert "eval_reward" in metrics
    assert "eval_gate/sft_share" not in metrics


def without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr("trl.trainer.grpo_trainer.create_model_from_path", load)


WITHOUT = questions().remove_columns("demonstration")
EMPTY = Dataset.from_dict({"prompt": ["1"], "demonstration": [" "]})
MISSING = Dataset.from_dict({"prompt": ["1"], "demonstration": [None]})
PICTURE = Dataset.from_dict({"prompt": ["1"], "demonstration": ["1"], "image": ["1"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": float("nan")}, "gamma: must be a finite number; got nan"),
        ({"gamma": "0"}, "gamma: must be a finite number; got '0'"),
        ({"sft_coef": 0.0}, "sft_coef: must be a positive number; got 0.0"),
        ({"dataset": WITHOUT}, "needs a column 'demonstration'; got the columns prompt, row"),
        ({"dataset": EMPTY}, "must not be empty; row 0 of train_dataset has ' '"),
        ({"dataset": MISSING}, r"must be a string, .*row 0 of train_dataset has None"),
        ({"dataset": PICTURE}, "HPTTrainer trains on text alone; got the column 'image'"),
    ],
)
def test_bad_input_is_refused_before_the_model_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    without_a_model(monkeypatch)
    with pytest.raises(ValueError, match=message):
        make(folder, tmp_path, **arguments)


def test_a_demonstration_that_is_too_long_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"prompt": ["1", "2", "3"], "demonstration": ["1" * 11, "2" * 12, "3" * 30]})
    with pytest.raises(ValueError, match=r"max_completion_length=12 tokens.* row 1 .* has 13, and 2 of 3 rows"):
        make(folder, tmp_path, dataset)


def test_a_streamed_demonstration_is_checked_when_it_is_used(folder: Path, tmp_path: Path) -> None:
    dataset = Dataset.from_dict({"prompt": ["1", "2", "3", "4"], "demonstration": ["1" * 12] * 4, "row": [1] * 4})
    trainer = make(folder, tmp_path, dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match=r"max_completion_length=12 tokens.* the question '.' has 13"):
        trainer.train()


def test_a_demonstration_must_follow_the_prompt_and_end_at_its_eos() -> None:
    from upge.integrations.trl.demonstrations import DemonstrationTokens

    changing = tokenizer()
    changing.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    prompt = [{"role": "user", "content": "1"}]
    with pytest.raises(ValueError, match="the chat template changes the prompt"):
        DemonstrationTokens(changing, [1])(prompt, "2")
    tokens = DemonstrationTokens(tokenizer(), [1])
    assert tokens("1+", "2")[-1] == tokens("1+", "2<eos>")[-1] == 1
    assert tokens("1+", "2") == tokens("1+", "2<eos>")
    with pytest.raises(ValueError, match=r"must not go on after .*<eos>"):
        tokens("1+", "2<eos>3")
    with pytest.raises(ValueError, match="must be a string where the prompt is one"):
        tokens("1+", [{"role": "assistant", "content": "2"}])
