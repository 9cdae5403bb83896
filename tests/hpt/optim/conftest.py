"""Makes `deepspeed_cases` importable: it is also a script, which torchrun starts in several processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
