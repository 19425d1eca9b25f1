"""How Lightning behaves here: one bar on stderr, no tips, and a Ctrl+C that stays one."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


def bar(title: str, each: int, epochs: int, *, measured: bool) -> Any:
    """A bar on stderr, where the other bars are; Lightning's own writes to stdout, which belongs to results. Where that
    is no terminal, a line in the log for each pass."""
    from lightning.pytorch.callbacks import Callback
    from tqdm import tqdm

    class Bar(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            done = each * trainer.current_epoch
            self.bar = tqdm(total=each * epochs, initial=done, desc=title, unit="batch", disable=None)

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            shown: dict[str, Any] = {"epoch": trainer.current_epoch + 1}
            if measured and len(pl_module.qualities):
                shown["ndcg"] = f"{pl_module.qualities[-1]:.4f}"
            self.bar.set_postfix(shown)
            if self.bar.disable:  # where nobody looks at bars, a log tells how far it is
                so_far = f", NDCG@10 {shown['ndcg']}" if "ndcg" in shown else ""
                log.info("%s: pass %d of at most %d%s", title, trainer.current_epoch + 1, epochs, so_far)

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.bar.update(1)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.bar.close()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            if hasattr(self, "bar"):  # it may fail before it begins
                self.bar.close()

    return Bar()


@contextmanager
def interruptible(title: str) -> Iterator[None]:
    """Ctrl+C stays what it is elsewhere: Lightning makes an exit of it and leaves the signal switched off."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, handler)
        log.warning("%s: interrupted; the same command goes on from the last good pass", title)
        raise KeyboardInterrupt from stop


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning tells about accelerators and tips that nobody asked for; its warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 asks torch 2.13 in a way that torch is about to drop.
            warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
            # It is ours, and not empty where an interrupted training goes on.
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
