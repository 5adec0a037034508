"""Files that are whole or not there, and a lock that keeps two runs out of one folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mllt.errors import ArgumentError, StorageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: How the names of files end that are being written; what a killed process leaves of them may be removed.
PARTIAL = ".partial"
_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def written_whole(path: str | Path, mode: str = "w", errors: str = "strict") -> Iterator[IO[Any]]:
    """A file that takes its place when it is whole and on disk: temporary file, fsync, rename.

    Whatever goes wrong, and whenever the process is killed, what was at `path` before is still there.

    Args:
        path: of the file; its folder is made where it is missing.
        mode: "w" (text, UTF-8) or "wb".
        errors: of text that is no Unicode: "surrogateescape" where paths of any encoding are written.

    Raises:
        StorageError: it cannot be written, the disk being full, for instance.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with written_whole(folder / "numbers.txt") as file:
    ...     print(42, file=file)
    >>> (folder / "numbers.txt").read_text()
    '42\\n'
    """
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(PARTIAL, f".{path.name}.", path.parent)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "", "errors": errors}
        with os.fdopen(handle, mode, **text) as file:  # type: ignore[call-overload]
            noted = _Noted(file)
            try:
                yield noted  # type: ignore[misc]
            except Exception as error:
                if noted.error is None or noted.error is error:
                    raise
                raise noted.error from error
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise cannot_write(path, error) from error
        raise


class _Noted:
    """A file that remembers why writing failed: who writes may tell it otherwise, or not at all."""

    def __init__(self, file: IO[Any]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def cannot_write(path: Path, error: OSError) -> StorageError:
    """What to tell when a file cannot be written."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            reason += f" ({shutil.disk_usage(path.parent).free:,} bytes are free)"
        advice = "Make room there, then type the same command again."
    else:
        advice = "Make it writable, or choose another place."
    return StorageError(error.errno, f"Cannot write {path}: {reason}. What was there before is still whole. {advice}")


def sync_folder(folder: Path) -> None:
    """Bring renames within a folder to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes have left half written directly in a folder that nobody else writes to."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class FolderLock:
    """Keeps a folder to one process at a time: `run.lock` in it, which tells host, process and time.

    It is the system's lock, which ends with its process, however that ends: a file that was left behind holds nobody up.
    Where the file system has no locks, the process that the file tells is looked for, and one of another host believed.

    Args:
        folder: to keep; made where it is missing.

    Raises:
        ArgumentError: another process has it; tells which.
        StorageError: the folder cannot be written to.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "run.lock"
        self._handle: int | None = None

    def __enter__(self) -> FolderLock:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self._locked()
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
            os.truncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(owner).encode(), 0)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self.path.unlink(missing_ok=True)  # while it is held: who waits for this file sees that it is another one
            os.close(self._handle)
            self._handle = None

    def _locked(self) -> int:
        """An open, locked file that is the one at `path`."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._lock(handle)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.stat(self.path)):
                        return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # removed by its owner in between

    def _lock(self, handle: int) -> None:
        try:
            if fcntl is None:
                raise OSError(errno.ENOSYS, "no locks")
            # Of the process, not of the open file: the processes of a data loader, which may outlive it, do not have it
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = _read_owner(handle)
            if error.errno in _NO_LOCKS_HERE:
                if owner is None or not _lives(owner):
                    return
            elif error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise self._refusal(owner) from error

    def _refusal(self, owner: dict[str, Any] | None) -> ArgumentError:
        who = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "another process"
        here = owner is not None and owner["host"] == socket.gethostname()
        stop = f", stop it (kill {owner['pid']})" if owner and here else ""
        gone = "" if here else f" If that process is gone for certain, remove {self.path}."
        return ArgumentError(
            f"Expected {self.path.parent} to be free, but {who}, is writing to it. Wait until it is done{stop}, or choose "
            f"another folder.{gone}"
        )


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _read_owner(handle: int) -> dict[str, Any] | None:
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        return {"host": str(owner["host"]), "pid": int(owner["pid"]), "since": str(owner["since"])}
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _lives(owner: dict[str, Any]) -> bool:
    """Whether the owner of a lock may still be at work."""
    if owner["host"] != socket.gethostname():
        return True
    if owner["pid"] == os.getpid():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
