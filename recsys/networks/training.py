"""The one training loop, for all neural networks: Lightning with early stopping, resume and no pickle.

A network's `forward(batch)` is its loss. After each epoch `quality()` is measured on held-out events, the best weights
are kept, and the state is written, so that a run that was interrupted goes on where it stopped: same data, same recipe
and same seed find it by their hash.
"""

import fcntl
import hashlib
import json
import logging
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, Field, ValidationInfo
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError

from recsys.data.files import atomic_file, storage_errors
from recsys.errors import SpecError
from recsys.lm.device import Dtype, auto_dtype, pick_device
from recsys.lm.memory import out_of_memory
from recsys.networks.checkpoints import checkpoint_io, read_checkpoint
from recsys.settings import Settings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PRECISION: Mapping[Dtype, Any] = {"bfloat16": "bf16-mixed", "float16": "16-mixed", "float32": "32-true"}
Batch = Mapping[str, "torch.Tensor"]


class Batches(Protocol):
    """The batches of one epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


def _divisor(heads: int, info: ValidationInfo) -> int:
    dim = info.data.get("dim", heads)  # not there where it is itself wrong
    if dim % heads:
        raise PydanticCustomError("heads", "{heads} does not divide dim = {dim}", {"heads": heads, "dim": dim})
    return heads


Heads = Annotated[int, Field(ge=1, validate_default=True), AfterValidator(_divisor)]
"""Attention heads: a field that divides the field `dim`, which stands above it."""


class Schedule(BaseModel):
    """rate: learning rate of AdamW, reached after `warmup` steps and then constant; patience: epochs without a better
    held-out NDCG@10 before it stops (after `epochs` at the latest); finish: epochs on the whole log that follow from
    the best weights, while the rate goes down to zero; accumulate: batches whose gradients make one step, so that a
    large step needs the memory of a small one."""

    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    batch: int = Field(default=32, ge=1)
    accumulate: int = Field(default=1, ge=1)
    epochs: int = Field(default=30, ge=1)
    patience: int = Field(default=2, ge=1)
    finish: int = Field(default=4, ge=0)


@dataclass(frozen=True)
class Trained:
    """What a training came to: the held-out quality of each epoch and the epoch (from 1) whose weights were kept."""

    qualities: tuple[float, ...]
    best: int

    def report(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {"epochs": len(self.qualities), "best_epoch": self.best, "heldout_ndcg@10": list(self.qualities)}


def fingerprint(config: BaseModel, seed: int, *arrays: npt.NDArray[Any]) -> str:
    """Names a training by all that it depends on."""
    digest = hashlib.sha256(f"{config.model_dump_json()} {seed}".encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()[:24]


def train(
    network: "torch.nn.Module",
    batches: Callable[[int], Batches],
    quality: Callable[[], float] | None,
    config: Schedule,
    *,
    seed: int,
    device: str,
    folder: Path,
    title: str,
) -> Trained:
    """Train `network` in place and leave it with its best weights, in evaluation mode on the CPU.

    batches : the batches of an epoch (from 0), already shuffled, the same for the same epoch.
    quality : higher is better, measured after each epoch; None goes through `config.finish` epochs and lets the rate
              down to zero instead.
    folder  : where the state is kept; what a finished training left there is taken over instead of training again.
    Errors: `SpecError` for a GPU that is not there, and where memory does not reach.
    """
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    place = torch.device(pick_device(device))
    network.train()
    epochs = config.epochs if quality else config.finish
    each = len(batches(0))
    steps = -(-each // config.accumulate) * epochs
    module = _module(network, batches, quality, config, steps=steps, seed=seed)
    best, last, done = folder / "best.ckpt", folder / "last.ckpt", folder / "done.json"
    _drop_unreadable(folder, best, last, done)
    if not done.exists():
        keep = ModelCheckpoint(
            dirpath=folder,
            filename=best.stem,
            monitor="quality",
            mode="max",
            save_last=True,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        stop = EarlyStopping("quality", mode="max", patience=config.patience, check_on_train_epoch_end=True)
        with torch.random.fork_rng(), _quiet():
            trainer = Trainer(
                accelerator="gpu" if place.type == "cuda" else place.type,
                devices=[place.index or 0] if place.type == "cuda" else 1,
                precision=PRECISION[auto_dtype(str(place))],
                max_epochs=epochs,
                reload_dataloaders_every_n_epochs=1,
                gradient_clip_val=1.0,
                accumulate_grad_batches=config.accumulate,
                callbacks=[keep, stop, _bar(title, each, epochs, measured=quality is not None)],
                plugins=[checkpoint_io()],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            if last.exists():
                log.info("%s: going on from %s", title, last)
            with _interruptible(title), _roomy(title, config):
                trainer.fit(module, ckpt_path=str(last) if last.exists() else None)
        with atomic_file(done) as path:
            path.write_text(json.dumps(module.qualities.tolist()))
    learned = read_checkpoint(best)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in learned.items()})
    network.cpu().eval()
    qualities = tuple(json.loads(done.read_text()))
    return Trained(qualities, best=1 + int(np.argmax(qualities)))


def _module(
    network: "torch.nn.Module",
    batches: Callable[[int], Batches],
    quality: Callable[[], float] | None,
    config: Schedule,
    *,
    steps: int,
    seed: int,
) -> Any:
    import torch
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.qualities = torch.empty(0, dtype=torch.float64)

        def train_dataloader(self) -> Any:
            return batches(self.current_epoch)

        def on_train_epoch_start(self) -> None:
            # By the epoch, so that a resumed run draws the dropout that an uninterrupted one would have drawn.
            torch.manual_seed(seed * 100_003 + self.current_epoch)

        def training_step(self, batch: Batch, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.network(batch)
            return loss

        def on_train_epoch_end(self) -> None:
            self.network.eval()
            # Without a measure, later is better.
            found: float = quality() if quality else float(self.current_epoch)
            self.network.train()
            self.qualities = torch.cat([self.qualities, torch.tensor([found], dtype=torch.float64)])
            self.log("quality", found)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["qualities"] = self.qualities

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.qualities = checkpoint["qualities"]

        def configure_optimizers(self) -> Any:
            learned = [p for p in self.network.parameters() if p.requires_grad]
            matrices = [p for p in learned if p.ndim > 1]
            others = [p for p in learned if p.ndim <= 1]
            groups = [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=config.rate, betas=(0.9, 0.98))

            def factor(step: int) -> float:
                return min(1.0, (step + 1) / (config.warmup + 1)) if quality else max(0.0, 1 - step / steps)

            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Module()


def _bar(title: str, each: int, epochs: int, *, measured: bool) -> Any:
    """A bar on stderr, where the other bars are; Lightning's own writes to stdout, which belongs to results."""
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

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.bar.update(1)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.bar.close()

    return Bar()


@contextmanager
def workplace(settings: Settings, key: str) -> Iterator[Path]:
    """The folder of this training's state: kept when the training is interrupted, removed when it is done.

    Where another process is at the same training, a folder of our own, which does not outlive us.
    Errors: `StorageError` where the cache cannot be written.
    """
    root = settings.cache_dir / "training"
    folder = root / key
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with tempfile.TemporaryDirectory(dir=root) as private:
                yield Path(private)
            return
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def _drop_unreadable(folder: Path, best: Path, last: Path, done: Path) -> None:
    """Leave a folder whose state is whole as it is, and empty any other."""
    if not folder.exists():
        return
    try:
        for state in [best] * (done.exists() or last.exists()) + [last] * last.exists():
            read_checkpoint(state)
        if done.exists():
            json.loads(done.read_text())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        log.warning("%s: this state of an earlier training cannot be read (%s); it starts anew", folder, error)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _interruptible(title: str) -> Iterator[None]:
    """Ctrl+C stays what it is elsewhere: Lightning makes an exit of it and leaves the signal switched off."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        signal.signal(signal.SIGINT, handler)
        log.warning("%s: interrupted; the same command goes on from the last good pass", title)
        raise KeyboardInterrupt from stop


@contextmanager
def _roomy(title: str, config: Schedule) -> Iterator[None]:
    """Where memory runs out, say what to do. It is not done here: other batches make another training."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise SpecError(
            f"{title}: out of memory in training with batches of {config.batch}: halve `batch` and double `accumulate` "
            "in the recipe, which makes the same steps in half the memory"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
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
