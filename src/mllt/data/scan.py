"""Looking through whole data sets: whether every image can be read, how large it is, and which are the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mllt.data.images import FileSource, inspect_picture
from mllt.data.sources import ImageSource
from mllt.errors import DataError

_DIGEST = 16  # bytes of a hash
_CHUNK = 32  # images that a process looks at before it reports
_AHEAD = 4  # chunks that are given out per process
_CRASH = "reading it ends the process that does: its memory did not suffice, or the decoder crashed"


class Look(NamedTuple):
    """What is seen of one image: 16 bytes of a hash of its content, its size in pixels and mode, or why it cannot be read."""

    digest: bytes = b""
    width: int = 0
    height: int = 0
    mode: str = ""
    cause: str | None = None


@dataclass
class Findings:
    """What is seen of a split.

    digests: `(n,)` hashes, empty for images that cannot be read; sizes: int32 `(n, 2)`, width and height, 0 for those;
    modes: how many images of each; broken: causes, by index.
    """

    digests: NDArray[np.bytes_]
    sizes: NDArray[np.int32]
    modes: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images can be read, `(n,)`."""
        kept = np.ones(len(self.digests), dtype=bool)
        kept[list(self.broken)] = False
        return kept


def examine(source: ImageSource, processes: int, advance: Callable[[int], None] | None = None) -> Findings:
    """Look at every image of a source: picture files are decoded whole, in processes of their own.

    Of half a million pictures it keeps some 12 MB. A picture whose decoding ends the process is found and told like any other
    broken one.

    Args:
        source: the images.
        processes: how many look at files.
        advance: told how many more images are done, now and then.

    >>> from mllt.data.sources import ArraySource
    >>> found = examine(ArraySource(torch.zeros(2, 3, 8, 9, dtype=torch.uint8), [0, 1]), processes=1)
    >>> found.sizes.tolist(), found.digests[0] == found.digests[1]
    ([[9, 8], [9, 8]], True)
    """
    count = len(source)
    found = Findings(np.zeros(count, f"S{_DIGEST}"), np.zeros((count, 2), np.int32))
    index = 0
    if isinstance(source, FileSource) and type(source).open is FileSource.open:  # not packed ones
        looks_at_all = _look_through(source, processes)
    else:
        looks_at_all = _look_here(source)
    with closing(looks_at_all) as parts:
        for looks in parts:
            for look in looks:
                if look.cause is None:
                    found.digests[index], found.sizes[index] = look.digest, (look.width, look.height)
                    found.modes[look.mode] += 1
                else:
                    found.broken[index] = look.cause
                index += 1
            if advance is not None:
                advance(len(looks))
    return found


def repeated(found: Mapping[str, Findings]) -> list[list[tuple[str, int]]]:
    """Images of the same content: for each content that comes again, the split and index of all images that have it.

    Args:
        found: findings by split.
    """
    names = list(found)
    digests = np.concatenate([one.digests for one in found.values()])
    split = np.repeat(np.arange(len(names)), [len(one.digests) for one in found.values()])
    index = np.concatenate([np.arange(len(one.digests)) for one in found.values()])
    which = np.flatnonzero(np.concatenate([one.readable for one in found.values()]))
    which = which[np.argsort(digests[which], kind="stable")]
    starts = np.flatnonzero(np.r_[True, digests[which][1:] != digests[which][:-1]]) if len(which) else np.zeros(0, np.int64)
    lengths = np.diff(np.r_[starts, len(which)])
    groups = [which[start : start + length] for start, length in zip(starts, lengths, strict=True) if length > 1]
    return [[(names[split[i]], int(index[i])) for i in group] for group in sorted(groups, key=lambda group: int(group[0]))]


# ---------------------------------------------------------------------------------------------------------------
# One image


def _look_at_file(path: str) -> Look:
    try:
        mode, (width, height) = inspect_picture(path)
        digest = hashlib.blake2b(digest_size=_DIGEST)
        with open(path, "rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except DataError as error:
        return Look(cause=getattr(error, "cause", str(error)))
    except OSError as error:  # it was there a moment ago
        return Look(cause=str(error))
    return Look(digest.digest(), width, height, mode)


def _look_here(source: ImageSource) -> Generator[list[Look], None, None]:
    """Looks at images that need no decoding, or that come decoded, within this process."""
    for start in range(0, len(source), _CHUNK):
        yield [_look_at(source, index) for index in range(start, min(start + _CHUNK, len(source)))]


def _look_at(source: ImageSource, index: int) -> Look:
    try:
        image: Any = source.load(np.array([index]))[0]
    except DataError as error:
        return Look(cause=getattr(error, "cause", str(error)))
    if isinstance(image, torch.Tensor):
        mode, (height, width), content = f"{len(image)} channels", image.shape[-2:], image.numpy().tobytes()
    else:
        mode, (width, height), content = image.mode, image.size, image.tobytes()
    told = hashlib.blake2b(f"{mode} {width} {height} ".encode() + content, digest_size=_DIGEST)
    return Look(told.digest(), width, height, mode)


# ---------------------------------------------------------------------------------------------------------------
# Many files, in processes


def _look_through(source: FileSource, processes: int) -> Generator[list[Look], None, None]:
    """Looks at all files, in order, some at a time.

    When a process ends (a crash of the decoder, no memory), the files that were given out are looked at again, one at a time by
    one process, so that the one that is to blame is found.
    """
    done = careful_until = 0
    while done < len(source):
        careful = done < careful_until
        end, chunk = (careful_until, 1) if careful else (len(source), _CHUNK)
        try:
            for looks in _by_processes(source, range(done, end, chunk), end, 1 if careful else processes):
                done += len(looks)
                yield looks
        except BrokenProcessPool:
            if careful:
                done += 1
                yield [Look(cause=_CRASH)]
            else:
                careful_until = min(done + processes * _AHEAD * _CHUNK, len(source))


def _by_processes(source: FileSource, starts: Sequence[int], end: int, processes: int) -> Iterator[list[Look]]:
    """Looks at the files from each of `starts` to the next, in order; no process outlives the iteration."""
    ahead = processes * _AHEAD if processes > 1 else 1
    waiting: deque[Future[list[Look]]] = deque()
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, _context(), _begin, (source,))
    try:
        for start in starts:
            waiting.append(pool.submit(_look_at_files, start, min(start + starts.step, end)))  # type: ignore[attr-defined]
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also after Control-C, when nobody waits for what is under way
        ours = [process for process in multiprocessing.active_children() if process not in others]
        if waiting:
            for process in ours:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> Any:
    """Forked processes, where there are any: they share the paths and need not import everything again."""
    return multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)


_source: FileSource  # of a process that looks at files


def _begin(source: FileSource) -> None:
    global _source
    _source = source
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C is for the process that started this one
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """Not to be left over when the process that started this one is killed."""
    parent.join()
    os._exit(1)


def _look_at_files(start: int, end: int) -> list[Look]:
    return [_look_at_file(_source.name_of(index)) for index in range(start, end)]
