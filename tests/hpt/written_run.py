"""A run's folder as the trainer writes it, for tests of what reads one."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import yaml

GRADES = ("1 digit", "2 digits", "10 digits")
LIMIT = 64  # tokens per rollout


def write_run(
    folder: Path, method="hpt", seed=0, steps=24, *, done=None, questions=16, n=8, eval_every=8, eval_n=4, **changes
) -> Path:
    """A run as the trainer writes it, of a model that gets better at each grade with the steps."""
    random_ = random.Random(f"{method} {seed}")
    folder.mkdir(parents=True)
    config = {
        "output": str(folder),
        "steps": steps,
        "seed": seed,
        "method": method,
        "model": {"path": "runs/tiny-qwen2", "dtype": "float32"},
        "data": {"train": "runs/train.jsonl"},
        "gate": {"kind": "switch", "gamma": 0},
        "rollout": {"n": n},
    } | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "rollouts").mkdir()
    speed = {"hpt": 1.0, "grpo": 0.45, "sft": 1.1}.get(method, 0.8)
    lines = []
    for step in range((steps if done is None else done) + 1):
        line = {"step": step}
        skill = speed * (1 - math.exp(-2.2 * step / steps))
        chances = {
            g: min(0.99, b + 0.6 * skill * w)
            for g, b, w in zip(GRADES, (0.5, 0.12, 0.01), (0.6, 1.0, 0.5), strict=True)
        }
        if step:
            line |= training_line(random_, method, step, skill, chances, questions, n, folder)
        if step % eval_every == 0 or step == steps:
            right = answered(folder, step, chances, eval_n, random.Random(f"{method} {seed} {step}"))
            line |= {"eval/accuracy": sum(right.values()) / 300, "eval/correct": sum(right.values()), "eval/count": 300}
            for grade, count in right.items():
                line |= {
                    f"eval/accuracy/{grade}": count / 100,
                    f"eval/correct/{grade}": count,
                    f"eval/count/{grade}": 100,
                }
            line |= {"eval/length": 30.0, "time/eval": 1.5}
        lines.append(json.dumps(line) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def answered(folder, step, chances, n, random_) -> dict[str, int]:
    """Writes the evaluation after `step`, with 100 responses per grade; returns how many are right."""
    rows = []
    for grade, chance in chances.items():
        for index in range(100 // n):
            easiness = 1.2 * (index + 0.5) / (100 // n) - 0.6
            lengths = [random_.randint(9, LIMIT) for _ in range(n)]
            correct = sum(random_.random() < chance + easiness for _ in range(n))
            question = {"id": f"{grade} {index}", "grade": grade, "prompt": f"{index} in {grade}", "answer": "1"}
            rows.append({"step": step} | question | {"n": n, "correct": correct, "lengths": lengths})
    random_.shuffle(rows)
    (folder / "eval").mkdir(exist_ok=True)
    (folder / "eval" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {grade: sum(row["correct"] for row in rows if row["grade"] == grade) for grade in GRADES}


def training_line(random_, method, step, skill, chances, questions, n, folder):
    line = {
        "gate/questions": questions,
        "train/loss": 0.4 - 0.2 * skill,
        "train/grad_norm": random_.lognormvariate(0, 0.4),
    }
    line |= {
        "train/lr": 1e-4,
        "train/updates": 1,
        "train/skipped": int(line["train/grad_norm"] > 2.2),
        "time/train": 0.9,
    }
    if method == "sft":
        tokens = 30 * questions
        nats = tokens * (0.5 - 0.2 * skill)
        return line | {"gate/sft": questions, "entropy/sum": nats, "entropy/count": tokens, "time/step": 1.0}
    grades = random_.choices(GRADES, k=questions)
    groups = [[random_.random() < chances[grade] for _ in range(n)] for grade in grades]
    lengths = [[min(LIMIT, int(random_.gauss(34 + 8 * skill, 9))) for _ in range(n)] for _ in range(questions)]
    statuses = [
        ["correct" if x else random_.choices(("incorrect", "unparsable", "timeout"), (9, 2, 0.1))[0] for x in g]
        for g in groups
    ]
    rows = [
        {"step": step, "id": f"q{step}-{i}", "grade": grade, "prompt": f"{i} + {step} = ?", "answer": str(i + step)}
        | {
            "responses": [f"{i} + {step}\nis \\boxed{{{i + step if x else '?'}}}" for x in group],
            "scores": [float(x) for x in group],
        }
        | {"statuses": statuses[i], "finish_reasons": ["length" if k == LIMIT else "stop" for k in lengths[i]]}
        | {"lengths": lengths[i], "P": sum(group) / n, "alpha": float(any(group)), "beta": float(not any(group))}
        for i, (grade, group) in enumerate(zip(grades, groups, strict=True))
    ]
    (folder / "rollouts" / f"step-{step:06d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    none, everyone = sum(not any(g) for g in groups), sum(all(g) for g in groups)
    tokens = sum(map(sum, lengths))
    verdicts = [status for group in statuses for status in group]
    return line | {
        "reward/sum": float(sum(map(sum, groups))),
        "reward/count": questions * n,
        "gate/sft": none if method == "hpt" else 0,
        "gate/none": none,
        "gate/some": questions - none - everyone,
        "gate/all": everyone,
        "entropy/sum": tokens * (0.62 - 0.3 * skill + random_.gauss(0, 0.02)),
        "entropy/count": tokens,
        "response/length_sum": tokens,
        "response/count": questions * n,
        "response/truncated": sum(k == LIMIT for g in lengths for k in g),
        "rollout/mismatch_kl_sum": 1e-7 * tokens * random_.random(),
        "rollout/mismatch_tokens": tokens,
        "time/rollout": random_.gauss(2.4, 0.1),
        "time/verify": 0.1,
        "time/step": 3.5,
        **{f"verify/{status}": verdicts.count(status) for status in ("correct", "incorrect", "unparsable", "timeout")},
    }
