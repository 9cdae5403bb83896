"""SFT by the Trainer of transformers without logits: one line makes a model compute its loss by upge.

The task is to count up from a number. It needs `pip install transformers accelerate`.
Run it: python examples/hf_sft.py
"""

import tempfile

import torch
import upge.integrations.transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

NUMBERS, LENGTH, STEPS = 16, 3, 60

torch.manual_seed(0)
config = Qwen2Config(
    vocab_size=NUMBERS,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=None,
    eos_token_id=None,
)
model = Qwen2ForCausalLM(config)
model = upge.integrations.transformers.patch(model)  # the one line

prompts = torch.arange(NUMBERS)[:, None]
demonstrations = (prompts + torch.arange(LENGTH + 1)) % NUMBERS  # (questions, 1 + LENGTH)
rows = [{"input_ids": ids, "labels": torch.cat([torch.tensor([-100]), ids[1:]])} for ids in demonstrations]

arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    max_steps=STEPS,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=2,
    learning_rate=1e-2,
    logging_steps=10,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
trainer.train()
losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
eval_loss = trainer.evaluate()["eval_loss"]

# Without labels the model is as it was: it generates, and gives logits.
answers = model.generate(prompts, max_new_tokens=LENGTH, do_sample=False)
accuracy = (answers == demonstrations).all(1).float().mean().item()
print(f"loss {losses[0]:.2f} -> {losses[-1]:.4f}  eval loss {eval_loss:.4f}  accuracy {accuracy:.2f}")
