"""Rules between settings: combinations that are not allowed.

A rule is one `if ...: yield message`. A message names the settings, their values and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpt.config.sections.rewards import VERIFIER
from hpt.support.cards import CARDS, GB

if TYPE_CHECKING:
    from hpt.config.schema import Config

GROUP_ADVANTAGES = ("mean", "mean_std", "leave_one_out")
"""Advantages that compare the rollouts of one question."""

PROBED_ADVANTAGES = ("mean", "leave_one_out", "none")
"""Advantages whose policy gradient has the same expectation for every number of rollouts, up to a known factor."""

DEEPSPEED_OPTIONS_SET_BY_HPT = (
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "gradient_accumulation_steps",
    "managed_gradient_accumulation",
    "train_batch_size",
    "fp16",
)


def broken_rules(config: Config) -> Iterator[str]:
    """A message for each rule that the settings break."""
    yield from _reward_rules(config)
    yield from _data_rules(config)
    yield from _gate_rules(config)
    yield from _signal_rules(config)
    yield from _rl_rules(config)
    if config.rollout.probe is not None:
        yield from _probe_rules(config, config.rollout.probe)
    yield from _model_rules(config)
    yield from _run_rules(config)
    if config.rollout.engine == "vllm":
        yield from _vllm_rules(config)
    else:
        yield from _unread_vllm_rules(config)
    if config.rollout.batching == "continuous":
        yield from _batching_rules(config)
    if config.engine == "deepspeed":
        yield from _deepspeed_rules(config)


def _reward_rules(config: Config) -> Iterator[str]:
    gate, rewards = config.gate, config.rewards
    for number, reward in enumerate(rewards):
        if reward.name in [earlier.name for earlier in rewards[:number]]:
            yield (
                f"rewards.{number}.function = {reward.function!r}: an earlier one is called {reward.name!r}, too, and "
                "metrics tell rewards by their names; give it another one in its module, as in `other = score`"
            )
        if reward.name == VERIFIER != reward.function:
            yield f"rewards.{number}.function = {reward.function!r}: {VERIFIER!r} is the verifier's score; rename it"
    names = [reward.name for reward in rewards if reward.name != VERIFIER]
    if gate.reads not in (VERIFIER, *names):
        yield f"gate.reads = {gate.reads!r}: allowed are {', '.join([VERIFIER, *names])}; functions must be in rewards"
    elif gate.reads == VERIFIER and gate.threshold is not None:
        yield f'gate.threshold = {gate.threshold} goes with a reward in gate.reads, which is "{VERIFIER}"'
    elif gate.reads != VERIFIER and gate.threshold is None:
        yield f"gate.reads = {gate.reads!r} needs gate.threshold: from which value on a rollout counts as right"
    if rewards and config.rl.advantage == "sign" and gate.needs_rollouts:
        yield (
            'rl.advantage "sign" asks whether the verifier\'s score is 1, and rewards give another number; use '
            'rl.advantage "mean", or no rewards'
        )


def _data_rules(config: Config) -> Iterator[str]:
    data = config.data
    if weights := [source.weight for source in data.eval_sources if source.weight != 1]:
        yield f"data.eval has a weight of {weights[0]}: every held-out question is asked; weights go with data.train"
    if data.loss_on == "all" and config.prompt.style == "plain":
        yield 'data.loss_on "all" trains on the turns of a chat: it goes with prompt.style "chat"'


def _gate_rules(config: Config) -> Iterator[str]:
    gate, n = config.gate, config.sampled
    if gate.kind == "function" and gate.function is None:
        yield 'gate.kind "function" needs gate.function'
    if gate.kind != "function" and gate.function is not None:
        yield f'gate.function is read by gate.kind "function" only; gate.kind is "{gate.kind}"'
    if gate.kind == "table" and gate.table is None:
        yield 'gate.kind "table" needs gate.table'
    if gate.kind != "table" and gate.table is not None:
        yield f'gate.table is read by gate.kind "table" only; gate.kind is "{gate.kind}"'
    if isinstance(gate.table, list) and not (gate.table and all(len(row) in (2, 3) for row in gate.table)):
        yield f"gate.table = {gate.table}: its rows are [alpha, beta] or [alpha, beta, off], at least one"
    gamma_limit = n if isinstance(gate.gamma, int) else 1.0
    if gate.kind == "switch" and gate.gamma >= gamma_limit:
        yield (
            f"gate.gamma = {gate.gamma} sends every question to SFT: an integer must be below rollout.n = {n}, "
            'a float below 1.0 (or choose method "sft")'
        )


def _signal_rules(config: Config) -> Iterator[str]:
    """What trains on rollouts and what trains on demonstrations."""
    gate, rollout = config.gate, config.rollout
    if config.sampled == 0:
        yield (
            f"rollout.n = {rollout.n} leaves no rollout besides the demonstration, which "
            f'off_policy.advantage "{config.off_policy.advantage}" puts in the group; use rollout.n >= 2'
        )
    alone = config.demonstration_in_group and config.sampled == 1
    if alone and config.some_without_demonstration and config.rl.advantage in GROUP_ADVANTAGES:
        yield (
            f"rollout.n = {rollout.n} leaves questions without a demonstration a group of 1 rollout, in which "
            f'rl.advantage "{config.rl.advantage}" is always 0; use rollout.n >= 3'
        )
    if gate.kind != "rl" and config.sft.coef == 0 and config.off_policy.coef == 0:
        yield f'gate.kind "{gate.kind}" sends questions to their demonstration, but sft.coef = off_policy.coef = 0'
    if rollout.dynamic_rounds > 1 and gate.kind != "rl":
        yield (
            f"rollout.dynamic_rounds = {rollout.dynamic_rounds} leaves out questions without a mixed outcome, "
            f'which gate.kind "{gate.kind}" would train on their demonstration; it goes with gate.kind "rl"'
        )
    if config.loss.aggregation == "official":
        if config.loss.kl_coef > 0:
            yield (
                f"loss.kl_coef = {config.loss.kl_coef}: the published runs have their KL penalty off, and "
                'loss.aggregation "official" does not have it; choose another aggregation'
            )
        for name, section in (("rl", config.rl), ("sft", config.sft), ("off_policy", config.off_policy)):
            if ":" in section.objective:
                yield (
                    f'{name}.objective = {section.objective!r}: loss.aggregation "official" puts its normalisers into '
                    "the advantages, which a function need not read; choose another aggregation"
                )


def _rl_rules(config: Config) -> Iterator[str]:
    gate, rl = config.gate, config.rl
    if config.rollout.n == 1 and gate.needs_rollouts and rl.advantage in GROUP_ADVANTAGES:
        yield (
            f'rl.advantage "{rl.advantage}" compares the rollouts of one question and is always 0 with '
            'rollout.n = 1; use rollout.n >= 2, or rl.advantage "batch" or "none"'
        )
    if rl.advantage == "gae" and gate.kind != "rl":
        yield f'rl.advantage "gae" goes with gate.kind "rl"; gate.kind is "{gate.kind}"'
    if rl.advantage == "gae" and config.model.lora is not None:
        yield 'rl.advantage "gae" trains all weights of a critic as large as the model: it does not go with model.lora'
    if rl.overlong is not None:
        limit, cache = config.overlong_limits
        if cache > limit:
            yield (
                f"rl.overlong.cache = {rl.overlong.cache} is longer than the length at which the penalty is full, "
                f"{limit} tokens"
            )
        if rl.advantage == "sign":
            yield 'rl.overlong has no effect on rl.advantage "sign", which asks only whether a rollout is right'


def _probe_rules(config: Config, k: int) -> Iterator[str]:
    """Probing goes with what keeps its estimate unbiased (hpt/method/probe.py)."""
    rollout, loss = config.rollout, config.loss
    if config.demonstration_in_group:
        yield (
            f"rollout.probe = {k}: the demonstration is in the group that advantages are computed over "
            f'(off_policy.advantage "{config.off_policy.advantage}"), whose size must not change; use "one"'
        )
    if k >= rollout.n:
        yield f"rollout.probe = {k} must be below rollout.n = {rollout.n}"
    if config.gate.kind not in ("switch", "rl"):
        yield (
            f"rollout.probe = {k} stops where more rollouts cannot change the decision of a switch; gate.kind is "
            f'"{config.gate.kind}", allowed are "switch" and "rl"'
        )
    if config.rl.advantage not in PROBED_ADVANTAGES:
        yield (
            f"rollout.probe = {k}: the expectation of rl.advantage {config.rl.advantage!r} depends on the number of "
            f"rollouts; allowed are {', '.join(PROBED_ADVANTAGES)}"
        )
    if loss.aggregation not in ("sequence", "constant"):
        yield (
            f'rollout.probe = {k}: with loss.aggregation "{loss.aggregation}" a question counts by its number of '
            'trained tokens, which probing changes; allowed are "sequence" and "constant"'
        )
    if loss.entropy_weights:
        yield (
            f"rollout.probe = {k}: loss.entropy_weights = true weighs rollouts by the sign of their advantage, which "
            "depends on how many rollouts a question has"
        )
    if rollout.dynamic_rounds > 1:
        yield (
            f"rollout.probe = {k} and rollout.dynamic_rounds = {rollout.dynamic_rounds} exclude each other: dynamic "
            "sampling chooses questions by all their rollouts"
        )


def _model_rules(config: Config) -> Iterator[str]:
    model = config.model
    if model.quantization is not None and model.lora is None:
        yield f'model.quantization "{model.quantization}" freezes the weights: it needs adapters to train, model.lora'
    if model.attention == "eager" and config.batch.packing == "packed":
        yield 'model.attention "eager" lets packed rows see each other: use batch.packing "padded", or "sdpa"'


def _run_rules(config: Config) -> Iterator[str]:
    verify = config.verify
    if verify.kind != "math" and verify.function is not None:
        yield f'verify.kind "{verify.kind}" and verify.function = "{verify.function}" exclude each other'
    if verify.kind != "math" and verify.boxed:
        yield f'verify.boxed goes with verify.kind "math"; verify.kind is "{verify.kind}"'
    if config.batch.updates > config.batch.questions:
        yield f"batch.updates = {config.batch.updates} must not exceed batch.questions = {config.batch.questions}"
    if config.eval.every > 0 and config.data.eval is None:
        yield f"eval.every = {config.eval.every} needs data.eval, a file of held-out questions"
    card, memory = config.hardware.gpu, config.hardware.gpu_memory_gib
    # A card's "GB" may be GiB.
    if card and memory and memory > CARDS[card].memory / GB:
        yield (
            f"hardware.gpu = {card!r} has {CARDS[card].memory / GB:g} GB, and hardware.gpu_memory_gib = {memory:g}: "
            "give at most what the card has, or null for all of it"
        )


def _vllm_rules(config: Config) -> Iterator[str]:
    rollout, vllm = config.rollout, config.rollout.vllm
    if rollout.top_p < 1 and rollout.temperature != 1:
        yield (
            f"rollout.top_p = {rollout.top_p} with rollout.temperature = {rollout.temperature}: "
            "vLLM reports log-probabilities at a temperature other than 1 only without a top-p cut; use "
            'rollout.top_p = 1, rollout.temperature = 1, or rollout.engine "transformers"'
        )
    if config.model.config and "hf_overrides" in vllm.options:
        yield (
            "model.config and rollout.vllm.options.hf_overrides both change the model's config; model.config reaches "
            "vLLM too"
        )
    if vllm.tensor_parallel > 1 and vllm.url is None and config.engine == "local":
        yield (
            f"rollout.vllm.tensor_parallel = {vllm.tensor_parallel} inside the trainer needs as many ranks: use "
            "engine=deepspeed, or a server (rollout.vllm.url)"
        )
    if vllm.adapters == "lora" and config.model.lora is None:
        yield 'rollout.vllm.adapters "lora" needs model.lora'
    if vllm.adapters == "lora" and vllm.url is not None:
        yield (
            'rollout.vllm.adapters "lora" goes with an engine inside the trainer; a server (hpt serve, '
            "rollout.vllm.url) takes merged weights: use rollout.vllm.adapters=merged"
        )
    if vllm.quantization is not None:
        yield from _vllm_quantization_rules(config)


def _unread_vllm_rules(config: Config) -> Iterator[str]:
    """Settings whose loss would be noticed late; the others may stand in a recipe beside another engine."""
    rollout = config.rollout
    for name, value in (("url", rollout.vllm.url), ("quantization", rollout.vllm.quantization)):
        if value is not None:
            yield (
                f'rollout.vllm.{name} = {value!r} is read by rollout.engine "vllm" only; rollout.engine is '
                f'"{rollout.engine}": use "vllm", or rollout.vllm.{name}=null'
            )


def _vllm_quantization_rules(config: Config) -> Iterator[str]:
    model, vllm = config.model, config.rollout.vllm
    setting = f'rollout.vllm.quantization "{vllm.quantization}"'
    if model.quantization != vllm.quantization:
        yield (
            f"{setting} needs the trainer's weights in the same form: model.quantization is {model.quantization!r}; "
            f"allowed is {vllm.quantization!r}"
        )
    if vllm.adapters != "lora":
        yield (
            f'{setting} needs rollout.vllm.adapters "lora"; it is "{vllm.adapters}", and adapters cannot be merged '
            "into 4-bit weights"
        )
    if vllm.sleep_level == 2:
        yield (
            f"{setting} needs rollout.vllm.sleep_level 1 or 0; level 2 drops the weights, and vLLM reads and quantizes "
            "them only once"
        )
    if model.dtype != "bfloat16":
        yield f'{setting} computes in bfloat16: it needs model.dtype "bfloat16"; it is "{model.dtype}"'


def _batching_rules(config: Config) -> Iterator[str]:
    """What transformers' continuous batching cannot do."""
    rollout = config.rollout
    if rollout.engine != "transformers":
        yield f'rollout.batching "continuous" goes with rollout.engine "transformers"; it is "{rollout.engine}"'
    if rollout.top_p < 1:
        yield (
            f'rollout.batching "continuous" with rollout.top_p = {rollout.top_p}: it reports log-probabilities after '
            'the top-p cut only; use rollout.top_p = 1, or rollout.batching "fixed"'
        )
    if config.model.attention == "eager":
        yield 'rollout.batching "continuous" does not go with model.attention "eager"; use "sdpa", or batching "fixed"'


def _deepspeed_rules(config: Config) -> Iterator[str]:
    deepspeed, optimizer = config.deepspeed, config.optimizer
    if taken := [name for name in deepspeed.options if name in DEEPSPEED_OPTIONS_SET_BY_HPT]:
        yield f"deepspeed.options sets {', '.join(taken)}, which hpt sets itself; see optimizer and model.dtype"
    if deepspeed.offload_parameters and deepspeed.stage != 3:
        yield f"deepspeed.offload_parameters needs deepspeed.stage 3; it is {deepspeed.stage}"
    if config.model.dtype == "float16":
        yield 'model.dtype "float16" needs loss scaling, which engine "deepspeed" lacks; use "bfloat16" or "float32"'
    if config.rl.advantage == "gae":
        yield 'rl.advantage "gae" has a critic, which engine "deepspeed" does not train; use engine "local"'
    if optimizer.states != "float32" or optimizer.offload:
        yield (
            f'optimizer.states = "{optimizer.states}" and optimizer.offload = {optimizer.offload} belong to engine '
            '"local"; engine "deepspeed" has deepspeed.offload_optimizer'
        )
