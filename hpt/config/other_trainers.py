"""Settings of TRL and verl that users type by habit, and the settings of a recipe that stand for them."""

from __future__ import annotations

SAME_HERE: dict[str, str] = {
    # TRL and transformers
    "model_name_or_path": "model.path",
    "train_dataset": "data.train",
    "dataset_name": "data.train",
    "eval_dataset": "data.eval",
    "reward_funcs": "rewards",
    "reward_weights": "rewards",
    "num_generations": "rollout.n",
    "max_completion_length": "rollout.max_tokens",
    "max_prompt_length": "data.max_prompt_tokens",
    "use_vllm": "rollout.engine",
    "vllm_server_base_url": "rollout.vllm.url",
    "vllm_gpu_memory_utilization": "rollout.vllm.memory_share",
    "vllm_tensor_parallel_size": "rollout.vllm.tensor_parallel",
    "learning_rate": "optimizer.lr",
    "lr_scheduler_type": "optimizer.schedule",
    "max_grad_norm": "optimizer.clip_grad_norm",
    "adam_beta1": "optimizer.betas",
    "adam_beta2": "optimizer.betas",
    "per_device_train_batch_size": "batch.questions or batch.tokens",
    "gradient_accumulation_steps": "batch.questions or batch.tokens",
    "generation_batch_size": "batch.questions",
    "steps_per_generation": "batch.updates",
    "num_iterations": "batch.updates",
    "max_steps": "steps",
    "num_train_epochs": "steps",
    "output_dir": "output",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "hub_model_id": "checkpoint.push_to_hub",
    "eval_steps": "eval.every",
    "report_to": "track",
    "run_name": "track.name",
    "peft_config": "model.lora",
    "lora_r": "model.lora.rank",
    "lora_alpha": "model.lora.alpha",
    "load_in_4bit": "model.quantization",
    "attn_implementation": "model.attention",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "beta": "loss.kl_coef",
    "epsilon": "rl.options.clip_low",
    "epsilon_high": "rl.options.clip_high",
    "loss_type": "rl.objective or loss.aggregation",
    "scale_rewards": "rl.advantage",
    # verl
    "actor_rollout_ref": "model, rollout, rl or optimizer",
    "algorithm": "rl.advantage or loss.kl_coef",
    "trainer": "steps, output, checkpoint or track",
    "train_files": "data.train",
    "val_files": "data.eval",
    "train_batch_size": "batch.questions",
    "ppo_mini_batch_size": "batch.updates",
    "max_response_length": "rollout.max_tokens",
    "tensor_model_parallel_size": "rollout.vllm.tensor_parallel",
    "gpu_memory_utilization": "rollout.vllm.memory_share",
    "adv_estimator": "rl.advantage",
    "kl_loss_coef": "loss.kl_coef",
    "custom_reward_function": "rewards",
    "total_training_steps": "steps",
    "total_epochs": "steps",
    "save_freq": "checkpoint.every",
    "test_freq": "eval.every",
}


def advice_for(name: str) -> str | None:
    """What to say of a setting of another trainer, after "there is no such setting"; None for other names."""
    if name == "logging_steps":
        return "every step is logged"
    if name in SAME_HERE:
        return f"did you mean {SAME_HERE[name]}?"
    return "did you mean a setting in rollout.vllm?" if name.startswith("vllm_") else None
