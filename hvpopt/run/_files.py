"""State files: safetensors with JSON metadata, replaced whole, the last two kept.

A state is written to a new file, synced, and renamed into place, and the directory is
synced: whenever the machine stops, a whole state lies under the name. The one before
stays beside it as ``NAME.previous``. A SHA-256 over skeleton and tensors tells damage.
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

#: Version of the format; a state of another one is refused.
FORMAT = 1
#: Keys of the metadata.
VERSION, CONTENT, CHECKSUM = "hvpopt state", "content", "sha256"
#: What follows the name of a state file in that of a temporary one.
_TEMPORARY = r"\.\d+-[0-9a-f]{8}\.(new|link)"


def previous(path: Path) -> Path:
    """Return where the state before the last one lies."""
    return path.with_name(path.name + ".previous")


def write(
    path: Path, skeleton: Any, tensors: Mapping[str, Tensor], *, keep: bool = True
) -> None:
    """Write a state, and leave either it or the one before under the name.

    Args:
        path: The file.
        skeleton: What ``json`` can write.
        tensors: By name, on the host, no two sharing memory.
        keep: Keep the file that is there as the previous one; False where it is damaged.

    Raises:
        OSError: If it cannot be written; what was there stays there.
    """
    content = json.dumps(skeleton, allow_nan=False)
    metadata = {VERSION: str(FORMAT), CONTENT: content}
    metadata[CHECKSUM] = checksum(content, tensors)
    new = _temporary(path, "new")
    try:
        with open(new, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        # straight from the tensors: no second copy of them is made on the way
        save_tensors(dict(tensors), new, metadata)
        os.chmod(new, mode)  # as the umask has it, which safetensors ignores
        with open(new, "rb+") as file:
            os.fsync(file.fileno())
    except BaseException as error:
        # also where memory ran out or somebody interrupted: no part of a state stays
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
    """Return the skeleton and tensors of a state file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        DamagedError: If it is truncated or altered.
        StateError: If it is of another version.
    """
    data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        content, expected = metadata[CONTENT], metadata[CHECKSUM]
        version = metadata[VERSION]
    except (
        safetensors.SafetensorError,
        ValueError,  # also of JSON and of UTF-8
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
    """Return the newest whole state: that of the path, or the one before.

    Args:
        path: The file.

    Returns:
        Skeleton, tensors, and True if the file itself was whole.

    Raises:
        FileNotFoundError: If there is neither.
        DamagedError: If both are damaged.
        StateError: If the newest whole one is of another version.
    """
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
    """Remove a state file and the one before it, where they are."""
    for file in (path, previous(path)):
        with suppress(OSError):
            file.unlink()


def sweep(path: Path) -> None:
    """Remove the temporary files that killed processes have left beside a state file.

    Args:
        path: The file; nobody else may be writing it.
    """
    ours = re.compile(re.escape(path.name) + _TEMPORARY)
    with suppress(OSError):
        for file in path.parent.iterdir():
            if ours.fullmatch(file.name):
                with suppress(OSError):
                    file.unlink()


def checksum(
    content: str, tensors: Mapping[str, Tensor], version: str = str(FORMAT)
) -> str:
    """Return the SHA-256 of a state in hexadecimal digits.

    Args:
        content: The skeleton as JSON.
        tensors: By name.
        version: Of the format.
    """
    digest = hashlib.sha256()
    digest.update(json.dumps([version, content]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        what = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(what).encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, whatever its dtype and device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _keep(path: Path) -> None:
    """Make the file at a path the previous one, with the path never empty if possible."""
    link = _temporary(path, "link")
    try:
        os.link(path, link)
        os.replace(link, previous(path))
        # renaming one link of a file to another does nothing, and leaves it there
        link.unlink(missing_ok=True)
    except OSError:  # a file system without hard links
        with suppress(OSError):
            link.unlink()
        os.replace(path, previous(path))


def _temporary(path: Path, ending: str) -> Path:
    """Return a name beside a file that no other process or thread takes."""
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{path.name}.{unique}.{ending}")


def _sync_directory(directory: Path) -> None:
    # so that the renaming itself survives a power cut; not every system can
    with suppress(OSError, AttributeError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
