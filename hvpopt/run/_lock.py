"""PathLock: a lock file that reserves a path for one run at a time."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import weakref
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

#: Error numbers of a lock that another process or run holds.
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
#: Attempts to lock a file that other runs remove at the same time.
_ATTEMPTS = 100

if sys.platform == "win32":
    import msvcrt

    #: Offset of the locked byte, beyond the contents: a locked byte cannot be read.
    _PLACE = 2**30

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _PLACE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class PathLock:
    """Context manager that locks ``NAME.lock``; BlockingIOError if another run holds it.

    The lock is the operating system's (``flock``, on Windows that of a byte), which ends
    with the process that holds it: a killed process leaves an unlocked file. It also
    excludes other threads of the process, and child processes do not inherit it. On a
    file system without locks a warning is logged and the path is not locked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.with_name(path.name + ".lock")
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """True while the lock is held."""
        return self._descriptor is not None

    def __enter__(self) -> PathLock:
        for _ in range(_ATTEMPTS):
            descriptor = self._open()
            try:
                _lock(descriptor)
            except OSError as error:
                holder = _holder(descriptor)
                os.close(descriptor)
                if error.errno in _TAKEN:
                    raise BlockingIOError(
                        errno.EAGAIN,
                        f"{self.path} is in use by {holder}; wait for that run to end, "
                        "or give another path",
                    ) from None
                self._warn(error)
                return self
            if self._is_current(descriptor):
                self._descriptor = descriptor
                _locks.add(self)
                self._sign()
                return self
            os.close(descriptor)  # the previous run removed the file after it was opened
        raise BlockingIOError(
            errno.EAGAIN, f"{self.file} is removed as often as it is made; try again"
        )

    def __exit__(self, *_: object) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        # removed while locked, so that it is not another run's file; Windows cannot
        with suppress(OSError):
            self.file.unlink()
        with suppress(OSError):
            os.close(descriptor)
        if sys.platform == "win32":
            with suppress(OSError):
                self.file.unlink()

    def forget(self) -> None:
        """Close the descriptor in a child process; the parent still holds the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with suppress(OSError):
                os.close(descriptor)

    def _open(self) -> int:
        try:
            return os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(
                error.errno,
                f"nothing can be saved to {self.path} ({error.strerror}): {self.file} "
                "cannot be written; give a path in a directory that can be written to",
            ) from error

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.file))
        except FileNotFoundError:
            return False

    def _sign(self) -> None:
        """Write the process and host that hold the lock."""
        assert self._descriptor is not None
        signature = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        with suppress(OSError):  # the lock is valid without, for instance on a full disk
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, signature.encode())

    def _warn(self, error: OSError) -> None:
        with suppress(OSError):
            self.file.unlink()
        logger.warning(
            "%s cannot be locked (%s): see to it that no other process saves to %s",
            self.file,
            error,
            self.path,
        )


def _holder(descriptor: int) -> str:
    """Return a description of the run that holds a lock, for a message."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        signature = json.loads(os.read(descriptor, 4096))
        pid, host = int(signature["pid"]), str(signature["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return f"another run of this process, {pid} on {host}"
    return f"process {pid} on {host}"


#: The locks that this process holds.
_locks: weakref.WeakSet[PathLock] = weakref.WeakSet()


def _forget_all() -> None:
    for lock in list(_locks):
        lock.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
