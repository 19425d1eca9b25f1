"""Where and how torch computes, and how transformers is kept from talking."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from recsys.errors import SpecError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def pick_device(name: str) -> str:
    """The torch device that a setting means; "auto" is CUDA, then Apple's MPS, then the CPU.

    Errors: `SpecError` for a name that torch does not know or a device that is not there.
    """
    import torch

    if name == "auto":
        fallback = "mps" if torch.backends.mps.is_available() else "cpu"
        return "cuda" if torch.cuda.is_available() else fallback
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"device '{name}' cannot be used here ({first_line(error)}): set RECSYS_DEVICE=auto") from error
    return name


# `torch.cpu.get_capabilities`. oneDNN's own word is not enough: it takes bf16 on any AVX-512, and emulates it.
_NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16")


def auto_dtype(device: str) -> Dtype:
    """bf16 where it is computed natively: on a CPU without it, it is emulated, four times slower than fp32."""
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    able = torch.cpu.get_capabilities() if device == "cpu" else {}
    return "bfloat16" if any(able.get(name, False) for name in _NATIVE_BF16) else "float32"


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars of transformers while weights are read from disk: it takes a second or two."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error of a library says, in one line."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]
