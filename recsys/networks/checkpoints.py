"""Training states as safetensors: Lightning's own checkpoints are pickles, which are neither read nor written here."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.data.files import atomic_file

if TYPE_CHECKING:
    import torch
    from lightning.pytorch.plugins.io import CheckpointIO


def write_checkpoint(state: Any, path: Path) -> None:
    """Write nested plain values and tensors into one safetensors file; the values go into its header, as JSON."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    plain = json.dumps(_flattened(state, tensors))
    with atomic_file(path) as file:
        save_file(tensors, file, metadata={"state": plain})


def read_checkpoint(path: Path) -> Any:
    """The inverse of `write_checkpoint`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        return _restored(json.loads(file.metadata()["state"]), tensors)


def checkpoint_io() -> "CheckpointIO":
    """What makes Lightning use these."""
    from lightning.pytorch.plugins.io import CheckpointIO

    class SafeCheckpoints(CheckpointIO):
        """Lightning's state as safetensors instead of pickle."""

        def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
            write_checkpoint(checkpoint, Path(path))

        def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: Any = None) -> dict[str, Any]:
            state: dict[str, Any] = read_checkpoint(Path(path))
            return state

        def remove_checkpoint(self, path: Any) -> None:
            Path(path).unlink(missing_ok=True)

    return SafeCheckpoints()


def _flattened(value: Any, tensors: dict[str, "torch.Tensor"]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # as pairs, since the optimizer's keys are numbers
        return {"pairs": [[key, _flattened(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_flattened(each, tensors) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _restored(value: Any, tensors: Mapping[str, "torch.Tensor"]) -> Any:
    if isinstance(value, list):
        return [_restored(each, tensors) for each in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _restored(each, tensors) for key, each in value["pairs"]}
    return value
