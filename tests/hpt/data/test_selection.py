"""Questions that are too long are left out and counted."""

import pytest
from chat_tokenizers import question, renderer

from hpt.data.selection import select_by_length
from hpt.support.errors import DataError


def test_long_questions_are_dropped_and_counted_never_cut():
    made = renderer("llama3", style="plain")
    questions = [
        question("a", "a", id="fits"),
        question("a" * 9, "a", id="long prompt"),
        question("a", "a" * 9, id="long demonstration"),
        question("a" * 9, "a" * 9, id="both"),
        question("a", None, id="no demonstration"),
    ]
    prompts = {q.id: len(made.prompt_ids(q)) for q in questions}
    assert prompts == {"fits": 2, "long prompt": 10, "long demonstration": 2, "both": 10, "no demonstration": 2}

    def select(prompt, demonstration, **more):
        return select_by_length(
            questions, made, max_prompt_tokens=prompt, max_demonstration_tokens=demonstration, **more
        )

    selection = select(9, 9)
    assert [q.id for q in selection.questions] == ["fits", "no demonstration"]
    assert (selection.long_prompts, selection.long_demonstrations, selection.dropped) == (2, 1, 3)
    assert select(10, 10).questions == select(None, None, on_long="error").questions == questions
    with pytest.raises(DataError) as caught:
        select(9, 9, on_long="error")
    assert str(caught.value).splitlines() == [
        "the data: 3 of 5 questions are too long:",
        "  question long prompt: prompt of 10 tokens, limit 9",
        "  question both: prompt of 10 tokens, limit 9",
        "  question long demonstration: demonstration of 10 tokens, limit 9",
    ]


def test_lengths_of_more_questions_than_are_tokenised_at_once():
    questions = [question("a" * (n % 3 + 1), "a", id=str(n)) for n in range(700)]
    selection = select_by_length(
        questions, renderer("llama3", style="plain"), max_prompt_tokens=3, max_demonstration_tokens=5
    )
    assert [int(q.id) for q in selection.questions] == [n for n in range(700) if n % 3 < 2]
