"""What to do where memory runs out: take half as many at once, go on, and say so."""

import gc
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from recsys.errors import ModelError
from recsys.lm.device import first_line

log = logging.getLogger(__name__)

T = TypeVar("T")
# CUDA has an error class of its own; the CPU's allocator and Apple's MPS say it in a plain RuntimeError.
_SIGNS = ("DefaultCPUAllocator", "MPS backend out of memory", "CUDA out of memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@dataclass
class Room:
    """How many a model has room for at once, as far as is known: halved for good where memory runs out."""

    most: int = sys.maxsize

    def run(self, work: Callable[[int], T], size: int, *, model_id: str, what: str, least: int = 1) -> T:
        """What `work(size)` gives; where memory runs out, what it gives with half as many, and so on; said once.

        least : of these not fewer can be taken at once
        Errors: `ModelError` where memory does not even reach for those.
        """
        wanted = size = max(min(size, self.most), least)
        while True:
            try:
                done = work(size)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if size <= least:
                    raise ModelError(
                        f"{model_id}: out of memory with no more than {size} {what} at once ({first_line(error)}): "
                        "free some, take a smaller model or shorter texts, or compute elsewhere (RECSYS_DEVICE)"
                    ) from error
            else:
                break
            # Only here, outside of `except`, has the failed attempt let go of what it held.
            size = self.most = max(size // 2, least)
            free()
        if size < wanted:
            log.warning("%s: out of memory with %d %s at once: going on with %d", model_id, wanted, what, size)
        return done


def free() -> None:
    """Give memory that nobody holds any more back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
