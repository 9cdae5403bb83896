"""Files of questions."""

import json

import pytest


@pytest.fixture
def jsonl(tmp_path):
    def write(*records, name="train.jsonl"):
        path = tmp_path / name
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return str(path)

    return write
