"""`prepare` of chat_sft_then_hpt.yaml: a random model with a chat template, and conversations of two sums each."""

import json
from pathlib import Path

import tiny_sums
from transformers import AutoTokenizer

from hpt.config.schema import Config

# "?1+2" asks, "=3<eos>" answers.
TEMPLATE = """{%- for message in messages %}
{{- '?' + message['content'] if message['role'] == 'user' else '=' + message['content'] + eos_token }}
{%- endfor %}{{ '=' if add_generation_prompt }}"""


def prepare(config: Config) -> None:
    """Writes the folder `model.path` and the file `data.train`."""
    tiny_sums.prepare(config)
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(config.model.path)
    with Path(config.data.train).open("w") as file:
        for a in range(5):
            for b in range(5):
                asked = [(a, b), (b, a)]
                messages = []
                for first, second in asked:
                    messages.append({"role": "user", "content": f"{first}+{second}"})
                    messages.append({"role": "assistant", "content": str(first + second)})
                file.write(json.dumps({"messages": messages, "answer": str(a + b)}) + "\n")
