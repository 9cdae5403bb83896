"""Too little memory: a run near the limit of its address space ends with advice, not by a kill."""

from __future__ import annotations

import os
import resource
from functools import partial
from pathlib import Path

from .cases import Case, Place, expect
from .world import expect_message, train

SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
"""16 million parameters: enough for its memory to be more than PyTorch's own."""
SHARES = (0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Of the memory of its weights, gradients and AdamW's moments."""
BYTES = 16
"""Of each parameter, for those."""


def cases() -> list[Case]:
    holds = "finishes, or ends with advice in a sentence"
    return [
        *(
            Case("memory", f"address space for {share:.0%} of its states", holds, partial(_limited, share))
            for share in SHARES
        ),
        Case("memory", "a plan that does not fit", "refused with advice before the model is loaded", _planned),
    ]


def _limited(share: float, place: Place) -> str:
    from tiny_world import make_world
    from transformers import AutoModelForCausalLM

    from .processes import Forked

    world = place.folder / "world"
    world.mkdir()

    def make() -> int:
        make_world(world, **SHAPE)
        model = AutoModelForCausalLM.from_pretrained(world / "model")
        (world / "parameters").write_text(str(sum(each.numel() for each in model.parameters())))
        return 0

    with Forked(make) as process:
        expect(process.wait() == 0, process.text[-500:])
    states = BYTES * int((world / "parameters").read_text())

    def limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * os.sysconf("SC_PAGE_SIZE") + round(share * states)
        resource.setrlimit(resource.RLIMIT_AS, (size, size))

    with train(world / "recipe.yaml", place.folder / "run", before=limit) as process:
        status = process.wait()
        expect(status in (0, 2) and "Traceback" not in process.text, f"status {status}: {process.text[-600:]}")
        if status == 0:
            return "finished"
        text = process.text[process.text.rindex("error:") :]
        expect("out of memory in the phase" in text and "hpt plan" in text, f"no advice: {text[-500:]}")
        return text[:100]


def _planned(place: Place) -> str:
    process = train(place.recipe, place.folder / "run", ["hardware.host_memory_gib=0.0001"])
    expect_message(process, "this run does not fit", "hardware.check=false")
    return "refused"
