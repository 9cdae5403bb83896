"""hpt: Hybrid Post-Training of language models (arXiv 2509.04419) with the fused loss of `upge`.

    import hpt

    run = hpt.train("demo", steps=10)
    run.folder, run.metrics, run.checkpoint

The command line is `hpt` (see `hpt --help`); every command does what the function of its name does.
"""

from hpt.api.evaluate import evaluate
from hpt.api.plan import plan
from hpt.api.run import Run
from hpt.api.train import train
from hpt.support.errors import HptError
from hpt.version import VERSION as __version__

__all__ = ["HptError", "Run", "__version__", "evaluate", "plan", "train"]
