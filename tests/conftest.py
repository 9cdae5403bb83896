"""Loaded before all other tests: without a GPU, Triton kernels run in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads this once, when it is first imported, which may happen in any test.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def row_independent_dot() -> Iterator[None]:
    """In the interpreter, a row of a dot product gets the same bits at any position in its tile, as on a GPU."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        yield
        return
    from bench.gpu import rehearsal

    with rehearsal.row_independent_dot():
        yield


@pytest.fixture(scope="session")
def rounded_bfloat16() -> Iterator[None]:
    """In the interpreter, casts to bfloat16 round to nearest even, as on a GPU. The interpreter cuts bits off."""
    if torch.cuda.is_available() or importlib.util.find_spec("triton") is None:
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def cast_impl(builder: Any, src: Any, dst_type: Any) -> Any:
        dtypes = src.dtype.scalar, dst_type.scalar
        if dtypes == (tl.float32, tl.bfloat16):
            bits = np.ascontiguousarray(src.data).view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            rounded = np.where(np.isnan(src.data), 0x7FC0, rounded)
            return interpreter.TensorHandle(rounded.astype(np.uint16), tl.bfloat16)
        if dtypes == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle((src.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
        return cast(builder, src, dst_type)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast_impl)
        yield


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed sets these in its process, and accelerate takes them for a launch with several processes."""
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
