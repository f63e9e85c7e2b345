"""Weights on the Hugging Face hub: `hf://OWNER/NAME`, fetched once into the hub's own cache."""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.errors import ConversionError

# The first that a repository has is taken, with the files beside it that describe the model.
_WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json", "flax_model.msgpack"),
)
_BESIDE = ("config.json", "preprocessor_config.json")
_SHOWN = 8
_PATIENCE = 10.0  # seconds for the hub to answer, before the cache alone is asked
_REASONS = {
    "LocalEntryNotFoundError": "the hub cannot be reached, and the cache does not have it",
    "GatedRepoError": "its owner gives access on request: ask for it there, and set HF_TOKEN",
    "RepositoryNotFoundError": "the hub has none such, or it is private and needs HF_TOKEN",
    "RevisionNotFoundError": "it has no such revision",
    "EntryNotFoundError": "it has no such file",
}
# A path makes one slash of two.
_ADDRESS = re.compile(r"hf:/{1,2}([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")


@dataclass(frozen=True)
class Fetched:
    """Files of a repository in the cache.

    Attributes:
        file: the weights, or their index.
        has_configuration: whether a `config.json` is beside them.
        note: which repository, at which commit.
    """

    file: Path
    has_configuration: bool
    note: str


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address on the hub."""
    return os.fspath(path).startswith("hf:")


def fetch(path: str | os.PathLike[str], suffixes: Iterable[str]) -> Fetched:
    """The file of weights at `hf://OWNER/NAME`, `hf://OWNER/NAME@REVISION` or behind it `/FILE`.

    What is in the cache already, for this commit, is not fetched again; where the hub cannot be
    reached, the cache is all there is.

    Args:
        path: the address.
        suffixes: of the files that can be read, where the repository has none with a usual name.

    Raises:
        ConversionError: it is no address, the hub has no such repository, revision or file, or
            neither the hub nor the cache can give it.
    """
    address = _ADDRESS.fullmatch(os.fspath(path))
    if address is None:
        raise ConversionError(
            f"{shown(path)} is no address on the hub: hf://OWNER/NAME, "
            "hf://OWNER/NAME@REVISION, or behind either /FILE"
        )
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.file_download
    except ModuleNotFoundError as error:
        raise ConversionError(
            "an address on the hub needs the package huggingface_hub, which is not installed: "
            "install flax-resnet[hub]"
        ) from error
    repository, revision, file = address.groups()
    name = f"hf://{repository}" + (f"@{revision}" if revision else "")
    hub = _Hub(huggingface_hub, name, repository, revision)
    names = hub.names()
    file = file or _choose(name, names, tuple(suffixes))
    wanted = [file, *(n for n in _BESIDE if n in names and file in _WEIGHTS)]
    places = [hub.place(wanted_name) for wanted_name in wanted]
    if file.endswith(".index.json"):
        for part in _parts(places[0]):
            hub.place(part)
    commit = next(p.name for p in places[0].parents if p.parent.name == "snapshots")
    source = "" if hub.is_online else ", from the cache alone: the hub could not be reached"
    note = f"{name}, {file}, at commit {commit}{source}"
    return Fetched(places[0], "config.json" in wanted, note)


class _Hub:
    """One repository at one revision, or what the cache has of it."""

    def __init__(self, library: Any, name: str, repository: str, revision: str | None):
        self.library, self.name, self.is_online = library, name, True
        self.repository, self.revision = repository, revision

    def names(self) -> list[str]:
        """All files of the repository; of the cache, where the hub cannot be reached."""
        errors = self.library.errors
        try:
            found = self.library.model_info(
                self.repository, revision=self.revision, timeout=_PATIENCE
            )
            return [file.rfilename for file in found.siblings or ()]
        except (
            errors.RepositoryNotFoundError,
            errors.RevisionNotFoundError,
            errors.HFValidationError,
        ) as error:
            raise self._refusal(error) from error
        except Exception as error:  # of several kinds, the HTTP library's among them
            self.is_online, reason = False, error
        folder = Path(self.library.constants.HF_HUB_CACHE)
        folder /= self.library.file_download.repo_folder_name(
            repo_id=self.repository, repo_type="model"
        )
        ref = folder / "refs" / (self.revision or "main")
        commit = ref.read_text() if ref.is_file() else self.revision or ""
        snapshot = folder / "snapshots" / commit
        if not commit or not snapshot.is_dir():
            raise ConversionError(
                f"{self.name} cannot be reached ({_first_line(reason)}), and the cache, "
                f"{self.library.constants.HF_HUB_CACHE}, does not have it: fetch it once with a "
                "connection (HF_HUB_OFFLINE=1 forbids that, HF_ENDPOINT names another hub)"
            ) from reason
        return [str(p.relative_to(snapshot)) for p in sorted(snapshot.rglob("*")) if p.is_file()]

    def place(self, file: str) -> Path:
        """A file in the cache, fetched where it is not there."""
        try:
            found = self.library.hf_hub_download(
                self.repository, file, revision=self.revision, local_files_only=not self.is_online
            )
        except Exception as error:
            raise self._refusal(error, file) from error
        return Path(found)

    def _refusal(self, error: BaseException, file: str = "") -> ConversionError:
        what = f"{self.name}/{file}" if file else self.name
        # The library's own errors are pages about URLs; a gated repository is one not found, too.
        reason = next((text for n, text in _REASONS.items() if _is_a(error, n)), _first_line(error))
        return ConversionError(f"{what} cannot be fetched: {reason}")


def _choose(name: str, names: list[str], suffixes: tuple[str, ...]) -> str:
    """The file of weights among those of a repository."""
    for usual in _WEIGHTS:
        if usual in names:
            return usual
    readable = [file for file in names if Path(file).suffix.lower() in suffixes]
    if len(readable) == 1:
        return readable[0]
    if not readable:
        raise ConversionError(f"{name} has no file that holds weights; it has:", names[:_SHOWN])
    raise ConversionError(
        f"{name} has {len(readable)} files that may be weights: name one of them:",
        [f"{name}/{file}" for file in readable[:_SHOWN]],
    )


def _parts(index: Path) -> list[str]:
    """The files that an index names; what is wrong with it, its reader says."""
    try:
        return sorted({str(file) for file in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def shown(path: str | os.PathLike[str]) -> str:
    """A path as the user wrote it: an address that became a `Path` lacks a slash."""
    return re.sub("^hf:/+", "hf://", os.fspath(path))


def _is_a(error: BaseException, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
