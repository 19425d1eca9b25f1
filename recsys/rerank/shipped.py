"""What requests mean, learned once for all catalogs and shipped with the package, a network for each encoder.

Which encoder it is over, how it was made and what was measured stand in its card, `trained/README.md`;
`pipelines/train_meanings.py` makes it anew. It is held to its hash like downloaded weights.
"""

import hashlib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.errors import BundleError

if TYPE_CHECKING:
    from recsys.rerank.interpret import Interpreter

FOLDER: Traversable = resources.files("recsys.rerank") / "trained"
FACTS = "meanings.json"


def shipped(encoder_id: str, folder: Traversable = FOLDER) -> "Interpreter | None":
    """The network over the encoder of that id (`Weights.short_id`, compared by its hash); None where there is none.

    Errors: `BundleError` where the file is not the one that was shipped.
    """
    facts = next((f for f in _facts(folder) if f["encoder"].rpartition("@")[2] == encoder_id.rpartition("@")[2]), None)
    if facts is None:
        return None
    import torch
    from safetensors.numpy import load

    from recsys.rerank.interpret import Interpreter

    data = (folder / facts["file"]).read_bytes()
    if hashlib.sha256(data).hexdigest() != facts["sha256"]:
        raise BundleError(
            f"{folder / facts['file']}: is not the file that was shipped (its SHA-256 differs): reinstall"
        )
    arrays = load(data)
    network = Interpreter(arrays["words.weight"].shape[1])
    network.load_state_dict({name: torch.from_numpy(value.astype(np.float32)) for name, value in arrays.items()})
    return network.eval()


def _facts(folder: Traversable) -> list[dict[str, Any]]:
    file = folder / FACTS
    return list(json.loads(file.read_text("utf-8"))) if file.is_file() else []
