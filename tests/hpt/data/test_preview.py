"""The first question is shown with every special token, and with what is trained."""

import io

from chat_tokenizers import question, renderer
from rich.console import Console

from hpt.data.preview import show_first
from hpt.data.statistics import histogram


def shown(made, asked, **more):
    console = Console(file=io.StringIO(), width=200, **more)
    console.print(show_first(made, asked))
    return console.file.getvalue()


def test_first_question_shows_special_tokens_and_what_is_trained():
    made, asked = renderer("qwen"), question("[bold]\x1b[2J", "3+4\n= 7 .")
    text = shown(made, asked)
    assert f"Prompt of question q: {len(made.prompt_ids(asked))} tokens, not trained" in text
    assert "<|im_start|>user↵\n[bold]␛[2J<|im_end|>↵\n<|im_start|>assistant↵\n" in text
    end = made.stop_ids[0]
    assert (
        f"Demonstration: {len(made.demonstration_ids(asked))} tokens, trained, the last one <|im_end|> ({end})" in text
    )
    assert "3+4↵\n= 7 .<|im_end|>\n" in text
    assert f"Rollouts stop at <|im_end|> ({end}), <|endoftext|> ({made.stop_ids[1]})" in text

    coloured = shown(made, asked, force_terminal=True, color_system="standard")
    trained = coloured[coloured.index("Demonstration") :]
    assert "\x1b[32m3+4↵" in trained  # green
    assert "\x1b[32m" not in coloured[: coloured.index("Demonstration") - 10]
    assert "\x1b[2m" in coloured  # the prompt is dim


def test_first_question_without_demonstration_and_of_great_length():
    text = shown(renderer("qwen"), question(demonstration=None))
    assert "Response: sampled by the model" in text
    text = shown(renderer("qwen"), question(demonstration="a" * 50_000 + "z"))
    assert "characters not shown]" in text
    assert "z<|im_end|>" in text
    assert len(text) < 8000


def test_a_bar_of_one_length_has_one_number():
    assert histogram("Prompts", [4, 4, 6], None)[1:] == [
        "  4 #################### 2",
        "  5                      0",
        "  6 ##########           1",
    ]
    assert histogram("Prompts", [4, 40], None)[1].startswith("   0 to  4 ")
