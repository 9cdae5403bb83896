"""Settings that are fine one by one and cannot work together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpt.config.schema import Config


def impossible_combinations(config: Config) -> list[str]:
    """What to say of every combination of settings that cannot work; empty where there is none."""
    gate, n, vllm = config.gate, config.sampled, config.rollout.vllm
    gamma_limit = n if isinstance(gate.gamma, int) else 1.0
    found = [
        *(
            problem
            for field, value in (("function", gate.function), ("table", gate.table))
            for problem in (
                (
                    gate.kind == field and value is None,
                    f'gate.kind "{field}" needs gate.{field}',
                ),
                (
                    gate.kind != field and value is not None,
                    f'gate.{field} is read by gate.kind "{field}" alone; gate.kind is "{gate.kind}"',
                ),
            )
        ),
        (
            isinstance(gate.table, list) and not (gate.table and all(len(row) in (2, 3) for row in gate.table)),
            f"gate.table = {gate.table}: its rows are [alpha, beta] or [alpha, beta, off], at least one",
        ),
        (
            n == 0,
            f"rollout.n = {config.rollout.n} leaves no rollout beside the demonstration, which "
            f'off_policy.advantage "{config.off_policy.advantage}" puts in the group; use rollout.n >= 2',
        ),
        (
            gate.kind != "rl" and config.sft.coef == 0 and config.off_policy.coef == 0,
            f'gate.kind "{gate.kind}" sends questions to their demonstration, but sft.coef = off_policy.coef = 0',
        ),
        (
            config.rollout.dynamic_rounds > 1 and gate.kind != "rl",
            f"rollout.dynamic_rounds = {config.rollout.dynamic_rounds} leaves out questions without a mixed outcome, "
            f'which gate.kind "{gate.kind}" would train on their demonstration; it goes with gate.kind "rl"',
        ),
        (
            config.rl.advantage == "gae" and gate.kind != "rl",
            f'rl.advantage "gae" goes with gate.kind "rl"; gate.kind is "{gate.kind}"',
        ),
        (
            config.rl.overlong is not None and config.overlong_limits[1] > config.overlong_limits[0],
            f"rl.overlong.cache = {config.rl.overlong and config.rl.overlong.cache} is longer than the length that it "
            f"leads up to, {config.rl.overlong and config.overlong_limits[0]} tokens",
        ),
        (
            config.rl.overlong is not None and config.rl.advantage == "sign",
            'rl.overlong has no effect on rl.advantage "sign", which asks only whether a rollout is right',
        ),
        (
            gate.kind == "switch" and gate.gamma >= gamma_limit,
            f"gate.gamma = {gate.gamma} sends every question to SFT: an integer must be below rollout.n = {n}, "
            'a float below 1.0 (or choose method "sft")',
        ),
        (
            config.rollout.n == 1
            and gate.kind != "sft"
            and config.rl.advantage in ("mean", "mean_std", "leave_one_out"),
            f'rl.advantage "{config.rl.advantage}" compares the rollouts of one question and is always 0 with '
            'rollout.n = 1; use rollout.n >= 2, or rl.advantage "batch" or "none"',
        ),
        *(
            (config.rollout.engine == "vllm" and wrong, message)
            for wrong, message in (
                (
                    config.rollout.top_p < 1 and config.rollout.temperature != 1,
                    f"rollout.top_p = {config.rollout.top_p} with rollout.temperature = {config.rollout.temperature}: "
                    "vLLM reports log-probabilities at a temperature other than 1 only without a top-p cut; use "
                    'rollout.top_p = 1, rollout.temperature = 1, or rollout.engine "transformers"',
                ),
                (
                    vllm.tensor_parallel > 1 and vllm.url is None and config.engine == "local",
                    f"rollout.vllm.tensor_parallel = {vllm.tensor_parallel} in the trainer's process takes so many "
                    "ranks: use engine=deepspeed, or a server (rollout.vllm.url)",
                ),
                (
                    vllm.adapters == "lora" and config.model.lora is None,
                    'rollout.vllm.adapters "lora" needs model.lora',
                ),
                (
                    vllm.adapters == "lora" and vllm.url is not None,
                    'rollout.vllm.adapters "lora" goes with an engine in the trainer\'s process; a server '
                    "(rollout.vllm.url) takes merged weights",
                ),
            )
        ),
        (
            config.batch.updates > config.batch.questions,
            f"batch.updates = {config.batch.updates} must not exceed batch.questions = {config.batch.questions}",
        ),
        *(_deepspeed_problems(config) if config.engine == "deepspeed" else ()),
        (
            config.eval.every > 0 and config.data.eval is None,
            f"eval.every = {config.eval.every} needs data.eval, a file of held-out questions",
        ),
        (
            config.model.quantization is not None and config.model.lora is None,
            f'model.quantization "{config.model.quantization}" freezes the weights: it needs adapters to train, '
            "model.lora",
        ),
        (
            config.model.lora is not None and config.rl.advantage == "gae",
            'rl.advantage "gae" trains all weights of a critic as large as the model: it does not go with model.lora',
        ),
        (
            config.model.attention == "eager" and config.batch.packing == "packed",
            'model.attention "eager" lets packed rows see each other: use batch.packing "padded", or "sdpa"',
        ),
        (
            config.loss.kl_coef > 0 and config.loss.aggregation == "official",
            f"loss.kl_coef = {config.loss.kl_coef}: the published code has no KL penalty, so "
            'loss.aggregation "official" has no normaliser for it',
        ),
    ]
    return [message for wrong, message in found if wrong]


_DEEPSPEED_OURS = (
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "train_batch_size",
    "fp16",
)


def _deepspeed_problems(config: Config) -> list[tuple[bool, str]]:
    zero, optimizer = config.deepspeed, config.optimizer
    taken = [name for name in zero.options if name in _DEEPSPEED_OURS]
    return [
        (
            bool(taken),
            f"deepspeed.options sets {', '.join(taken)}, which hpt sets by itself; see optimizer and model.dtype",
        ),
        (
            zero.offload_parameters and zero.stage != 3,
            f"deepspeed.offload_parameters needs deepspeed.stage 3; it is {zero.stage}",
        ),
        (
            config.model.dtype == "float16",
            'model.dtype "float16" needs loss scaling, which engine "deepspeed" has not; use "bfloat16" or "float32"',
        ),
        (
            config.rl.advantage == "gae",
            'rl.advantage "gae" has a critic, which engine "deepspeed" does not train; use engine "local"',
        ),
        (
            optimizer.states != "float32" or optimizer.offload,
            f'optimizer.states = "{optimizer.states}" and optimizer.offload = {optimizer.offload} belong to engine '
            '"local"; engine "deepspeed" has deepspeed.offload_optimizer',
        ),
    ]
