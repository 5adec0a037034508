"""Files are whole or not there, whatever happens; and a folder is one run's alone."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from mllt.errors import ArgumentError, StorageError
from mllt.files import FolderLock, remove_partial, sha256_of, written_whole

HOLD = """
import os, sys, time
from mllt.files import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder, code=HOLD):
    """A process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_file_is_what_was_written_and_nothing_is_left_beside_it(tmp_path):
    with written_whole(tmp_path / "new" / "file.txt") as file:
        file.write("näive\n")
    assert (tmp_path / "new" / "file.txt").read_bytes() == "näive\n".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.txt"]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_what_was_there_stays_when_writing_breaks_off(tmp_path, fault):
    path = tmp_path / "file.txt"
    path.write_text("before")

    def write():
        with written_whole(path) as file:
            file.write("half of")
            raise fault

    with pytest.raises(fault):
        write()
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_a_killed_writer_leaves_what_was_there_and_a_partial_file_that_can_be_removed(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("before")
    code = (
        "import os, signal, sys; from mllt.files import written_whole\n"
        "with written_whole(sys.argv[1]) as file: file.write('half of'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["file.txt"]


def test_a_full_disk_is_told_with_what_is_free_and_leaves_the_file_of_before(small_disk):
    path = small_disk / "weights.ckpt"
    with written_whole(path, "wb") as file:
        torch.save(torch.zeros(400_000), file)
    before = sha256_of(path)

    def write():
        with written_whole(path, "wb") as file:
            torch.save(torch.ones(600_000), file)  # torch's writer does not say why it fails

    with pytest.raises(StorageError, match=r"No space left on device \([\d,]+ bytes are free\).*still whole.*Make room"):
        write()
    assert sha256_of(path) == before
    assert [found.name for found in small_disk.iterdir()] == ["weights.ckpt"]


def test_a_limit_on_the_size_of_files_is_told_too(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large"), written_whole(path, "wb") as file:
            file.write(bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before"


def test_a_folder_that_is_in_use_is_refused_and_the_owner_named(tmp_path):
    process = holder(tmp_path)
    try:
        owner = f"process {process.pid} on {socket.gethostname()}, since 20"
        with pytest.raises(ArgumentError, match=f"{owner}.*kill {process.pid}"):
            FolderLock(tmp_path).__enter__()
    finally:
        process.kill()
        process.wait()


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path):
    process = holder(tmp_path)
    process.kill()
    process.wait()
    assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid
    with FolderLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run.lock").exists()


def test_children_of_a_killed_process_do_not_keep_its_lock(tmp_path):
    process = holder(tmp_path, HOLD.replace("time.sleep(60)", "os.fork() or time.sleep(30); time.sleep(60)"))
    try:
        time.sleep(0.2)
        process.kill()
        process.wait()
        with FolderLock(tmp_path):
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid(), "and not the killed one's"
    finally:
        subprocess.run(["pkill", "-f", str(tmp_path)], check=False)


def test_where_there_are_no_locks_the_process_that_the_file_tells_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mllt.files.fcntl", None)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    def lock_of(host, pid):
        (tmp_path / "run.lock").write_text(json.dumps({"host": host, "pid": pid, "since": "2026-01-01"}))
        return FolderLock(tmp_path)

    with lock_of(socket.gethostname(), gone.pid):
        pass
    with pytest.raises(ArgumentError, match=f"process {os.getppid()} on"):
        lock_of(socket.gethostname(), os.getppid()).__enter__()
    with pytest.raises(ArgumentError, match=r"on elsewhere.*If that process is gone for certain, remove"):
        lock_of("elsewhere", gone.pid).__enter__()
