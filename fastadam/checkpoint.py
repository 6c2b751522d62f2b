"""Checkpoints: named arrays and one JSON object in a safetensors file, equal bytes for equal content."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastadam.errors import CheckpointError
from fastadam.files import write_atomically

METADATA_KEY = "fastadam"
"""The only metadata key of the file: several would be written in any order."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """``tensors`` by name, C-contiguous and writable, and ``metadata``, a JSON object."""

    tensors: dict[str, np.ndarray]
    metadata: dict[str, Any]


def save(path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Replace ``path`` atomically by a checkpoint. RunError if it cannot be written; the old file stays then.

    ``metadata`` must be JSON as it is: text keys, finite numbers (ValueError, TypeError otherwise).
    """
    from safetensors.numpy import save as serialize

    note = json.dumps(metadata, sort_keys=True, allow_nan=False, separators=(",", ":"))
    arrays = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    write_atomically(path, serialize(arrays, metadata={METADATA_KEY: note}))


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint that ``save`` wrote. CheckpointError for anything else, saying what it is instead."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    _refuse_what_is_no_file(path)
    try:
        with safe_open(path, framework="np") as file:
            metadata = _metadata(path, file.metadata())
            tensors = {name: _writable(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no checkpoint, or damaged or cut short ({_reason(error)}); give another one"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    return Checkpoint(tensors, metadata)


def reason(error: Exception) -> str:
    """Why a checkpoint could not be used, for a message."""
    return f"it has no entry {error}" if isinstance(error, KeyError) else str(error)


def locate(path: Path | str) -> Path:
    """``path`` itself, or the best checkpoint of the run folder it is; CheckpointError if that has none."""
    path = Path(path)
    best, last = path / "best.safetensors", path / "last.safetensors"
    try:
        if not path.is_dir():
            return path
        if best.is_file():
            return best
        last_is_there = last.is_file()
    except OSError as error:
        raise CheckpointError(
            f"cannot look for a checkpoint in {path}: {error.strerror}; give one that you may read"
        ) from error
    if last_is_there:
        raise CheckpointError(f"{path} has no best.safetensors yet; give {last} to use its last checkpoint")
    raise CheckpointError(f"{path} holds no checkpoint; give a run folder with best.safetensors in it, or a file")


def _refuse_what_is_no_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder, not a checkpoint; give a .safetensors file")
        with path.open("rb") as file:
            empty = not file.read(1)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}; check the path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(f"cannot read checkpoint {path!s:.200}: {reason}") from None
    if empty:
        raise CheckpointError(f"checkpoint {path} is empty; give another one")


def _metadata(path: Path, found: dict[str, str] | None) -> dict[str, Any]:
    if not found or METADATA_KEY not in found:
        raise CheckpointError(
            f"{path} is a safetensors file, but not a checkpoint of fastadam: its metadata have no key "
            f"{METADATA_KEY!r}; give a file that fastadam wrote"
        )
    try:
        metadata = json.loads(found[METADATA_KEY])
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise CheckpointError(f"the metadata of {path} are damaged; give another checkpoint")
    return metadata


def _writable(array: np.ndarray) -> np.ndarray:
    return np.require(array, requirements=["C", "W"])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("Error while deserializing header: ")[:120]
