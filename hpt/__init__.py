"""hpt: Hybrid Post-Training of language models (arXiv 2509.04419) with the fused loss of `upge`.

The command line is `hpt` (see `hpt --help`). In Python:

    from rich.console import Console

    from hpt.config.recipe import load_config
    from hpt.training.run import start

    start(load_config("demo", ["output=runs/mine", "steps=40"]), Console())
"""

__version__ = "0.1.0"
