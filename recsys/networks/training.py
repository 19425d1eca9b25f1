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
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, Field, ValidationInfo
from pydantic_core import PydanticCustomError
from safetensors import SafetensorError

from recsys.data.files import atomic_file, storage_errors
from recsys.errors import SpecError
from recsys.lm.device import Dtype, auto_dtype, pick_device
from recsys.lm.memory import free, out_of_memory
from recsys.networks.checkpoints import checkpoint_io, read_checkpoint
from recsys.networks.manners import bar, interruptible, quiet
from recsys.settings import Settings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PRECISION: Mapping[Dtype, Any] = {"bfloat16": "bf16-mixed", "float16": "16-mixed", "float32": "32-true"}
T = TypeVar("T")
Batch = Mapping[str, "torch.Tensor"]
# Cuts a batch into exactly so many parts, each with its share of the batch's loss.
Split = Callable[[Batch, int], Sequence[tuple[Batch, float]]]


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
    split: Split | None = None,
) -> Trained:
    """Train `network` in place and leave it with its best weights, in evaluation mode on the CPU.

    batches : the batches of an epoch (from 0), already shuffled, the same for the same epoch.
    quality : higher is better, measured after each epoch; None goes through `config.finish` epochs and lets the rate
              down to zero instead.
    folder  : where the state is kept; what a finished training left there is taken over instead of training again.
    split   : where memory runs out, batches are taken in two parts, four, and so on, from the last good pass on; each
              step is still that of the whole batches. None: they cannot be cut.
    Errors: `SpecError` for a GPU that is not there, and where memory does not reach.
    """
    import torch
    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    place = torch.device(pick_device(device))
    epochs = config.epochs if quality else config.finish
    each = len(batches(0))
    best, last, done = folder / "best.ckpt", folder / "last.ckpt", folder / "done.json"
    _drop_unreadable(folder, best, last, done)
    start = {name: value.detach().clone() for name, value in network.state_dict().items()} if split else {}

    def run(parts: int) -> list[float]:
        if parts > 1:
            network.load_state_dict(start)  # where there is a good pass, its state comes from there
        network.train()
        steps = -(-each // config.accumulate) * epochs
        module = _module(network, batches, quality, config, steps=steps, seed=seed, split=split, parts=parts)
        # Not by `save_last`, which leaves out the epochs that are not the best so far: a resumed run would repeat them.
        keep, latest = (
            ModelCheckpoint(
                dirpath=folder,
                filename=path.stem,
                monitor=monitor,
                mode="max",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
            for path, monitor in ((best, "quality"), (last, None))
        )
        stop = EarlyStopping("quality", mode="max", patience=config.patience, check_on_train_epoch_end=True)
        gpus = [place.index or 0] if place.type == "cuda" else []
        with torch.random.fork_rng(gpus), quiet():
            trainer = Trainer(
                accelerator="gpu" if gpus else place.type,
                devices=gpus or 1,
                precision=PRECISION[auto_dtype(str(place))],
                max_epochs=epochs,
                reload_dataloaders_every_n_epochs=1,
                gradient_clip_val=1.0,
                accumulate_grad_batches=config.accumulate * parts,
                callbacks=[stop, keep, latest, bar(title, each * parts, epochs, measured=quality is not None)],
                plugins=[checkpoint_io()],
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            if last.exists():
                log.info("%s: going on from %s", title, last)
            with interruptible(title):
                trainer.fit(module, ckpt_path=str(last) if last.exists() else None)
        found: list[float] = module.qualities.tolist()
        return found

    if not done.exists():
        measured = _roomy(run, title, config, cut=split is not None)
        with atomic_file(done) as path:
            path.write_text(json.dumps(measured))
    learned = read_checkpoint(best)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in learned.items()})
    network.cpu().eval()
    qualities = tuple(json.loads(done.read_text()))
    return Trained(qualities, best=1 + int(np.argmax(qualities)))


def _roomy(run: Callable[[int], T], title: str, config: Schedule, *, cut: bool) -> T:
    """What `run(parts)` gives, of as few parts of each batch as memory has room for, if it can be `cut` at all.

    Errors: `SpecError` that says what to do, where it cannot, or memory does not reach for a part of one row.
    """
    parts = 1
    while True:
        rows = -(-config.batch // parts)
        try:
            return run(parts)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not cut or rows == 1:
                advice = "halve `batch` and double `accumulate` in the recipe, for the same steps in half the memory"
                if rows == 1:
                    advice = "make the network smaller, or train where there is more memory (RECSYS_DEVICE)"
                raise SpecError(f"{title}: out of memory in training with batches of {rows}: {advice}") from error
        # Only here, outside of `except`, has the failed attempt let go of what it held.
        parts *= 2
        free()
        log.warning(
            "%s: out of memory in training with batches of %d: going on with %d at once, %d times for the same step",
            title,
            rows,
            -(-config.batch // parts),
            parts * config.accumulate,
        )


class _Parts:
    """An epoch's batches, each in so many parts, with the weight of each; whole where there is one part."""

    def __init__(self, batches: Batches, split: Split | None, parts: int) -> None:
        self._batches, self._split, self._parts = batches, split, parts

    def __len__(self) -> int:
        return len(self._batches) * self._parts

    def __iter__(self) -> Iterator[tuple[Batch, float]]:
        for batch in self._batches:
            if self._split is None or self._parts == 1:
                yield batch, 1.0
            else:
                # Lightning takes the mean over what it accumulates, and shares add up to one.
                yield from ((part, share * self._parts) for part, share in self._split(batch, self._parts))


def _module(
    network: "torch.nn.Module",
    batches: Callable[[int], Batches],
    quality: Callable[[], float] | None,
    config: Schedule,
    *,
    steps: int,
    seed: int,
    split: Split | None,
    parts: int,
) -> Any:
    import torch
    from lightning.pytorch import LightningModule

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.qualities = torch.empty(0, dtype=torch.float64)

        def train_dataloader(self) -> Any:
            return _Parts(batches(self.current_epoch), split, parts)

        def on_train_epoch_start(self) -> None:
            # By the epoch, so that a resumed run draws the dropout that an uninterrupted one would have drawn.
            torch.manual_seed(seed * 100_003 + self.current_epoch)

        def training_step(self, batch: tuple[Batch, float], _: int) -> torch.Tensor:
            part, weight = batch
            loss: torch.Tensor = self.network(part) * weight
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
