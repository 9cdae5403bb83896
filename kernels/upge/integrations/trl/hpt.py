"""Hybrid Post-Training for a TRL set-up: GRPO where a question is solved, SFT on its demonstration where it is not."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor

from upge.presets import SFT

from .demonstrations import DemonstrationTokens, check_dataset, check_demonstration, check_lengths, check_number
from .grpo import GRPOTrainer
from .policy_terms import PolicyTerms


class HPTTrainer(GRPOTrainer):
    """Hybrid Post-Training (HPT, Lv et al. 2025, arXiv 2509.04419): `GRPOTrainer` with a switch between RL and SFT.

        trainer = HPTTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=questions)

    Per question, P is the mean reward of its num_generations completions: the weighted sum of the reward functions,
    before any scaling. P > gamma: RL on the completions, with TRL's advantages and loss. Else: SFT on the
    demonstration, and the completions are dropped. Evaluation is TRL's.

    train_dataset: columns `prompt` (a string or messages), `demonstration` (a string; where the prompt is messages,
                   also a list of one message of the assistant), and what the reward functions read. A demonstration
                   ends with an EOS token, which is trained; where the text has none, it is added. It may have
                   max_completion_length tokens.
    gamma:         a finite number. Default 0: SFT where no completion earned a reward.
    sft_coef:      the paper's beta, a positive number.

    All other arguments are those of `trl.GRPOTrainer`.

    Loss: the demonstration d of a question adds -sft_coef / (Q |d|) sum_t log pi(d_t), with Q the questions of the
    update (over all micro-batches and ranks). So it weighs as much as the question's completions do in the loss type
    "grpo", and the balance does not depend on batch sizes. The KL term and the entropy bonus act on all trained tokens,
    with TRL's weights. A dropped completion has no loss at all; it counts in normalisers that count completions or
    the tokens of the generation batch, as if its advantage were 0.

    Where all reward functions return None for a question's completions, P is unknown, and the question goes to SFT.

    Logs `gate/sft_share`, the share of questions that went to SFT, beside TRL's metrics. Rewards, lengths and the
    logged completions with their advantages are those before the gate, dropped completions included; entropy and kl are
    those of the trained tokens.

    Raises ValueError, before the model is loaded, where the column is missing or a demonstration is empty, or gamma or
    sft_coef is out of range; and after it where a demonstration is too long.
    """

    def __init__(self, *args: Any, gamma: float = 0.0, sft_coef: float = 1.0, **kwargs: Any):
        self.gamma = check_number("gamma", gamma, "a finite number")
        self.sft_coef = check_number("sft_coef", sft_coef, "a positive number", minimum=0.0)
        given = inspect.signature(trl.GRPOTrainer.__init__).bind_partial(self, *args, **kwargs).arguments
        dataset = given.get("train_dataset")
        check_dataset(dataset)
        super().__init__(*args, **kwargs)
        settings: Any = self.args
        self._group_size: int = settings.num_generations
        self._longest: int = settings.max_completion_length
        if self._is_vlm:
            raise ValueError("processing_class: HPTTrainer trains on text alone; got a processor of images and text")
        self._demonstration_tokens = DemonstrationTokens(
            self.processing_class,
            self.eos_token_ids,
            tools=self.tools or None,
            chat_template=self.chat_template,
            **(settings.chat_template_kwargs or {}),
        )
        if isinstance(dataset, Dataset):
            check_lengths(dataset, self._demonstration_tokens, self._longest)
        self._questions: list[dict[str, Any]] = []
        self._rewards: Tensor | None = None
        self._keeps_rewards = False

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if "demonstration" not in columns:
            columns.append("demonstration")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, in which completions of the questions that go to SFT carry no signal, and the first of each is
        its demonstration."""
        self._questions, self._rewards = inputs, None  # a step that failed may have left some
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._trains:
            is_demonstration = self._is_demonstration.to(batch["advantages"].device)
            is_dropped = self._is_dropped.to(batch["advantages"].device)
            batch["advantages"] = batch["advantages"].masked_fill(is_demonstration | is_dropped, 0.0)
            batch["completion_mask"] = batch["completion_mask"].masked_fill(is_dropped.unsqueeze(1), 0)
            batch["is_demonstration"] = is_demonstration
        return batch

    def _generate(self, prompts: list[Any]) -> Any:
        """TRL's completions, scored at once, with demonstrations in place of some.

        So what TRL does next (masks, log-probabilities of the old policy and of the reference model, the sampler's
        importance ratio) is done for the rows that are trained.
        """
        generated = super()._generate(prompts)
        if not self._trains:
            return generated
        prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, *images = generated
        for row, question in enumerate(self._questions):
            for name, values in extra_fields.items():  # as TRL does for the reward functions
                if not isinstance(values, list):
                    question[name] = values
                elif row < len(values):
                    question[name] = values[row]
        self._keeps_rewards = True
        try:
            rewards = self._calculate_rewards(self._questions, prompts, completions, completion_ids)
        finally:
            self._keeps_rewards = False
        self._choose_signals(rewards, len(prompts))
        for row in self._is_demonstration.nonzero().flatten().tolist():
            tokens = self._tokens_of(self._questions[row])
            completion_ids[row] = tokens
            if tool_mask is not None:
                tool_mask[row] = [1] * len(tokens)
            if logprobs is not None:
                logprobs[row] = [None] * len(tokens)  # no engine sampled them: TRL makes their importance ratio 1
        return (prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, *images)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Those of `_generate`, where it has scored the completions already."""
        rewards, self._rewards = self._rewards, None
        if rewards is None:
            rewards = super()._calculate_rewards(*args, **kwargs)
        if self._keeps_rewards:
            self._rewards = rewards
        return rewards

    def _choose_signals(self, rewards: Tensor, local_rows: int) -> None:
        """The gate. rewards: (completions of all ranks, reward functions), NaN where a function returned None.

        A question's completions are adjacent, and may be spread over two ranks: each rank sees all rewards, and marks
        its own rows.
        """
        weighted = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        weighted[rewards.isnan().all(1)] = torch.nan
        means = weighted.view(-1, self._group_size).nanmean(1)
        to_sft = ~(means > self.gamma).cpu()
        rows = torch.arange(local_rows) + self.accelerator.process_index * local_rows
        is_first = rows % self._group_size == 0
        self._is_demonstration = to_sft[rows // self._group_size] & is_first
        self._is_dropped = to_sft[rows // self._group_size] & ~is_first
        self._metrics["train"]["gate/sft_share"].append(to_sft.float().mean().item())

    def _tokens_of(self, question: dict[str, Any]) -> list[int]:
        where = f"the question {question['prompt']!r:.80}"
        check_demonstration(question.get("demonstration"), where)
        tokens = self._demonstration_tokens(question["prompt"], question["demonstration"])
        if len(tokens) > self._longest:
            raise ValueError(
                f"demonstration: may have max_completion_length={self._longest} tokens, its EOS included; "
                f"{where} has {len(tokens)}"
            )
        return tokens

    def _demonstration_weights(self, inputs: Mapping[str, Any]) -> Tensor:
        """(B, 1) float32: the weight of each token of a demonstration; 0 in other rows."""
        rows = len(inputs["completion_mask"]) * self.current_gradient_accumulation_steps
        lengths = inputs["completion_mask"].sum(1).clamp(min=1)
        weights = self.sft_coef * self._group_size / (rows * lengths) * inputs["is_demonstration"]
        return weights.unsqueeze(1)

    def _policy_terms(self, inputs: Mapping[str, Any]) -> PolicyTerms:
        terms = super()._policy_terms(inputs)
        sft_weights = self._demonstration_weights(inputs)
        return dataclasses.replace(
            terms,
            objectives=(*terms.objectives, SFT()),
            objective_index=inputs["is_demonstration"].long().unsqueeze(1),
            weights=torch.where(sft_weights > 0, sft_weights, terms.weights),
        )

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """TRL's loss, to which demonstrations add nothing but their KL and entropy, and their SFT loss.

        After a fused pass both are values without a gradient, which `GRPOTrainer` adds.
        """
        if "is_demonstration" not in inputs:
            return super()._compute_loss(model, inputs)
        outputs: list[Any] = []

        def scored(*args: Any, **kwargs: Any) -> Any:
            outputs.append(model(*args, **kwargs))
            return outputs[-1]

        loss = super()._compute_loss(scored, inputs)
        mask = inputs["completion_mask"]
        if "tool_mask" in inputs:
            mask = mask * inputs["tool_mask"]
        logprobs = outputs[0].log_probs[:, -mask.shape[1] :]
        return loss - (self._demonstration_weights(inputs) * mask * logprobs).sum()
