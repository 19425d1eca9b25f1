"""What requests mean, learned once for all catalogs and shipped with the package, a network for each encoder.

Which encoder it is over, how it was made and what was measured stand in its card, `trained/README.md`;
`pipelines/train_meanings.py` makes it anew. It is held to its hash like downloaded weights.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from recsys.errors import BundleError
from recsys.lm.weights import same_weights
from recsys.protocols import Floats

if TYPE_CHECKING:
    from recsys.rerank.interpret import Interpreter

FOLDER: Traversable = resources.files("recsys.rerank") / "trained"
FACTS = "meanings.json"
_SCALE = ".scale"


def shipped(encoder_id: str, folder: Traversable = FOLDER) -> "Interpreter | None":
    """The network over the encoder of that id (`Weights.short_id`, compared by its hash); None where there is none.

    Errors: `BundleError` where the file is not the one that was shipped.
    """
    facts = next((f for f in _facts(folder) if same_weights(f["encoder"], encoder_id)), None)
    if facts is None:
        return None
    import torch
    from safetensors.numpy import load

    from recsys.rerank.interpret import Interpreter

    try:
        data = (folder / facts["file"]).read_bytes()
    except OSError as error:
        raise BundleError(f"{folder / facts['file']}: cannot be read ({error.strerror}): reinstall") from error
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise BundleError(
            f"{folder / facts['file']}: is not the file that was shipped (its SHA-256 differs): reinstall"
        )
    state = restored(load(data))
    network = Interpreter(state["words.weight"].shape[1])
    network.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return network.eval()


def rounded(state: Mapping[str, Floats]) -> dict[str, npt.NDArray[Any]]:
    """Weights as they are shipped, in a quarter of the bytes: matrices as int8 with a scale for each row."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, value in state.items():
        if value.ndim == 1:
            found[name] = value.astype(np.float16)
        else:
            scale = np.maximum(np.abs(value).max(axis=1), 1e-8).astype(np.float32) / 127
            found[name] = np.rint(value / scale[:, None]).astype(np.int8)
            found[name + _SCALE] = scale
    return found


def restored(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Floats]:
    """The inverse of `rounded`, as far as that goes."""
    whole = {name: value.astype(np.float32) for name, value in arrays.items() if not name.endswith(_SCALE)}
    return {n: v * arrays[n + _SCALE][:, None] if n + _SCALE in arrays else v for n, v in whole.items()}


def _facts(folder: Traversable) -> list[dict[str, Any]]:
    file = folder / FACTS
    return list(json.loads(file.read_text("utf-8"))) if file.is_file() else []
