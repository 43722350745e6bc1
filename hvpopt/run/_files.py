"""State files: safetensors with JSON metadata, replaced atomically, the last two kept.

A state is written to a new file, synced, and renamed to its path, and the directory is
synced: the path holds a complete state even if the machine stops during a save. The
state before it is kept as ``NAME.previous``. A SHA-256 over skeleton and tensors detects
damage.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from hvpopt.errors import DamagedError, StateError

logger = logging.getLogger(__name__)

#: Version of the format; files of other versions are refused.
FORMAT = 1
#: Keys of the metadata.
VERSION, CONTENT, CHECKSUM = "hvpopt state", "content", "sha256"
#: Suffix of a temporary file, after the name of the state file.
_TEMPORARY = r"\.\d+-[0-9a-f]{8}\.(new|link)"


def previous(path: Path) -> Path:
    """Return the path of the state before the last one."""
    return path.with_name(path.name + ".previous")


def write(
    path: Path, skeleton: Any, tensors: Mapping[str, Tensor], *, keep: bool = True
) -> None:
    """Replace a state file atomically; the old one stays if the write fails."""
    # ``keep``: the old file becomes the previous version; False if it is damaged.
    # Tensors are on the host, no two sharing memory.
    content = json.dumps(skeleton, allow_nan=False)
    metadata = {VERSION: str(FORMAT), CONTENT: content}
    metadata[CHECKSUM] = checksum(content, tensors)
    new = _temporary(path, "new")
    try:
        with open(new, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        # ``save_file`` rather than ``save``, which makes a second copy of the tensors
        save_tensors(dict(tensors), new, metadata)
        os.chmod(new, mode)  # safetensors ignores the umask
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        # leave no partial file, also after MemoryError or KeyboardInterrupt
        with suppress(OSError):
            new.unlink()
        if isinstance(error, safetensors.SafetensorError):
            raise OSError(f"{new} cannot be written: {error}") from error
        raise
    if keep and path.exists():
        _keep(path)
    os.replace(new, path)
    _sync_directory(path.parent)


def read(path: Path) -> tuple[Any, dict[str, Tensor]]:
    """Return the skeleton and tensors of a state file; DamagedError if it is altered."""
    data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        content, expected = metadata[CONTENT], metadata[CHECKSUM]
        version = metadata[VERSION]
    except (
        safetensors.SafetensorError,
        ValueError,  # includes errors of JSON and of UTF-8
        KeyError,
        TypeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise DamagedError(
            f"{path} is no whole state file ({type(error).__name__}: {error})"
        ) from error
    found = checksum(content, tensors, version)
    if found != expected:
        raise DamagedError(
            f"{path} was altered since it was written: its SHA-256 is {found}, not "
            f"{expected}"
        )
    if version != str(FORMAT):
        raise StateError(
            f"{path} is of format {version}, and this version of hvpopt reads {FORMAT}"
        )
    return json.loads(content), tensors


def read_newest(path: Path) -> tuple[Any, dict[str, Tensor], bool]:
    """Return a state file's skeleton and tensors, and True if it was undamaged."""
    # If it is damaged, those of its previous version; DamagedError if both are.
    try:
        return *read(path), True
    except (DamagedError, FileNotFoundError) as error:
        damage = error
    try:
        skeleton, tensors = read(previous(path))
    except FileNotFoundError:
        raise damage from None
    except DamagedError as error:
        raise DamagedError(f"{damage}; and {error}") from None
    logger.warning("%s; going on from the state before it, %s", damage, previous(path))
    return skeleton, tensors, False


def remove(path: Path) -> None:
    """Remove a state file and its previous version, if they exist."""
    for file in (path, previous(path)):
        with suppress(OSError):
            file.unlink()


def sweep(path: Path) -> None:
    """Remove temporary files of killed processes; no process may be writing the file."""
    ours = re.compile(re.escape(path.name) + _TEMPORARY)
    with suppress(OSError):
        for file in path.parent.iterdir():
            if ours.fullmatch(file.name):
                with suppress(OSError):
                    file.unlink()


def checksum(
    content: str, tensors: Mapping[str, Tensor], version: str = str(FORMAT)
) -> str:
    """Return the SHA-256 of a skeleton, as JSON, and tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    digest.update(json.dumps([version, content]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        what = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(what).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor of any dtype, on any device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _keep(path: Path) -> None:
    """Make the file at a path the previous version, by a hard link if possible."""
    # On a file system without hard links the file is moved, and the path is empty until
    # the new state takes its place.
    link = _temporary(path, "link")
    try:
        os.link(path, link)
        os.replace(link, previous(path))
        # ``replace`` does nothing if both are links to one file
        link.unlink(missing_ok=True)
    except OSError:
        with suppress(OSError):
            link.unlink()
        os.replace(path, previous(path))


def _temporary(path: Path, ending: str) -> Path:
    """Return a unique path in the directory of a file."""
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.{unique}.{ending}")


def _sync_directory(directory: Path) -> None:
    # makes the renaming durable; not available on every system
    with suppress(OSError, AttributeError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
