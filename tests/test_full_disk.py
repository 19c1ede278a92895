"""A disk that is full, failing, read-only or gone: said with the place and what to do; nothing half-written; the run goes on after it.

The portable form is a write that fails on its way to the disk, and a limit on file sizes, which any user may set. The real
form is a small file system of its own, filled up: mounting it needs the right to do so.
"""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from live_run import Live, Process, until
from small_run import NAME, check_finished, controller, errors, work

from pipeline import directory, durable, worker
from pipeline.cli import main
from pipeline.directory import DirectoryStore
from pipeline.errors import ConfigError, StoreUnavailable
from pipeline.launch import alone
from pipeline.run import RunFolder
from pipeline.store import Store, open_store
from search.limits import Limits
from search.records import EndReason

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environment, which only Linux allows")
ADVICE = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("quota", "free some space"),
    errno.EFBIG: ("ulimit -f",),
    errno.EACCES: ("permission denied", "give this user the right"),
    errno.EPERM: ("not permitted", "give this user the right"),
    errno.EROFS: ("read-only", "mount it for writing"),
    errno.ENOENT: ("is gone", "still mounted?"),
    errno.ESTALE: ("stale", "mount it again"),
    errno.EIO: ("the disk failed", "log"),
    errno.ETIMEDOUT: (os.strerror(errno.ETIMEDOUT),),
}


def fails(number: int) -> Callable[..., None]:
    """A system call that fails."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def assert_says(error: StoreUnavailable, number: int, place: Path) -> None:
    for word in (*ADVICE[number], str(place), "Nothing is lost or half-written"):
        assert word in str(error)
    assert error.exit_code == 1


@pytest.mark.parametrize("call", ["open", "fsync", "link"])
@pytest.mark.parametrize("number", ADVICE, ids=errno.errorcode.get)
def test_a_write_that_fails_is_explained_and_leaves_nothing(tmp_path: Path, number: int, call: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.create("run/before.json", b"before")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fails(number))
        with pytest.raises(StoreUnavailable) as caught:
            store.create("run/history/000000.json", b"data")
        assert_says(caught.value, number, tmp_path / "store" / "run" / "history" / "000000.json")
        assert store.read("run/before.json") == b"before"
        assert store.list("run/") == ["run/before.json"]
    assert list((tmp_path / "store" / ".tmp").iterdir()) == []
    assert store.create("run/history/000000.json", b"data") == b"data"


@pytest.mark.parametrize("number", [number for number in ADVICE if number != errno.ENOENT], ids=errno.errorcode.get)
def test_a_read_that_fails_is_explained_and_is_no_absent_object(tmp_path: Path, number: int) -> None:
    store = DirectoryStore(tmp_path)
    store.create("run/one.json", b"one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", fails(number))
        patch.setattr(os, "scandir", fails(number))
        for look in (lambda: store.read("run/one.json"), lambda: store.list("run/")):
            with pytest.raises(StoreUnavailable) as caught:
                look()
            assert_says(caught.value, number, tmp_path / "run")
    assert store.read("run/one.json") == b"one"


@pytest.mark.parametrize("number", [number for number in ADVICE if number not in (errno.ENOENT, errno.EPERM, errno.ETIMEDOUT)], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["open", "link", "mkdir"])
def test_a_store_that_cannot_be_made_now_is_explained(tmp_path: Path, number: int, call: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, fails(number))
        with pytest.raises(StoreUnavailable) as caught:
            DirectoryStore(tmp_path / "store")
        assert_says(caught.value, number, tmp_path / "store")
    DirectoryStore(tmp_path / "store").create("run/one.json", b"one")


def test_a_file_system_without_hard_links_and_a_path_that_is_no_folder_are_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "store", tmp_path / ("x" * 300)):
        with pytest.raises(ConfigError, match="choose another place"):
            DirectoryStore(path)
    for number in (errno.EPERM, errno.ENOTSUP):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "link", fails(number))
            with pytest.raises(ConfigError, match="without hard links"):
                DirectoryStore(tmp_path / "store")
    assert list((tmp_path / "store" / ".tmp").iterdir()) == []


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """The system itself cuts writes short: what is over the limit is not written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_cut_short_by_the_system_is_no_object(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with file_size_limit(1000):
        with pytest.raises(StoreUnavailable, match="ulimit"):
            store.create("run/one.json", b"1" * 1001)
        assert store.list("") == []
        assert list((tmp_path / ".tmp").iterdir()) == []
        assert store.create("run/one.json", b"2" * 1000) == b"2" * 1000


def test_a_store_whose_disk_is_not_mounted_is_not_begun_again_below_it(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    store.create("run/one.json", b"one")
    (tmp_path / "store").rename(tmp_path / "unmounted")
    (tmp_path / "store").mkdir()
    (tmp_path / "store").rmdir()
    with pytest.raises(StoreUnavailable, match="still mounted"):
        store.create("run/two.json", b"two")
    assert not (tmp_path / "store").exists()
    (tmp_path / "unmounted").rename(tmp_path / "store")
    assert store.create("run/two.json", b"two") == b"two"
    assert store.list("") == ["run/one.json", "run/two.json"]


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("fcntl.flock", fails(errno.ENOLCK))
    with alone(DirectoryStore(tmp_path), NAME, take_over=False):
        assert "knows no locks" in caplog.text


def test_a_lock_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / ".locks" / NAME).mkdir(parents=True)
    with pytest.raises(StoreUnavailable, match=f"{tmp_path}/.locks/{NAME}"), alone(DirectoryStore(tmp_path), NAME, take_over=False):
        pass


# -- a run


class FullDisk:
    """From the n-th file on, so many are written by half and fail."""

    def __init__(self, after: int, length: int) -> None:
        self.after, self.length, self.written = after, length, 0

    def write_new(self, path: Path, data: bytes) -> None:
        """See pipeline.durable."""
        self.written += 1
        if self.after < self.written <= self.after + self.length:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        durable.write_new(path, data)


def search(store: Store, limits: Limits) -> int:
    """A person starts it until it comes to its end; returns how often."""
    for starts in range(1, 20):
        with contextlib.suppress(StoreUnavailable):
            if work(controller(store, limits=limits)) is not None:
                return starts
        assert not RunFolder(store, NAME).exists() or errors(store) == []
    raise AssertionError("the run does not come to its end")


@pytest.mark.parametrize("patience", [0.0, worker.PATIENCE_SECONDS])
def test_a_run_goes_on_after_a_disk_that_was_full_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    """With workers that wait for space, and with such as give up."""
    monkeypatch.setattr(worker, "patience_seconds", lambda _: patience)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    count, length = 4, 3
    limits = Limits(max_evaluations=count)
    machine_faults, starts = 0, []
    writes = 1_000_000
    after = -1
    while after < writes:
        disk = FullDisk(after, length if after >= 0 else 0)
        store = DirectoryStore(tmp_path / str(after))
        monkeypatch.setattr(directory, "write_new", disk.write_new)
        starts.append(search(store, limits))
        check_finished(store, count)
        assert list((store.root / ".tmp").iterdir()) == []
        if after < 0:
            writes = disk.written
        ends = [end for story in RunFolder(store, NAME).load().stories for end in story.ends.values()]
        assert {end.reason for end in ends} <= {EndReason.MACHINE, EndReason.CONTROLLER_LOST}
        machine_faults += sum(end.reason is EndReason.MACHINE for end in ends)
        after += 1
    assert writes > 4 * count
    assert machine_faults >= count if patience == 0 else machine_faults == 0  # a worker that gave up says why by its exit code
    assert starts[0] == 1
    assert starts[1] > 1  # before it is in charge, a controller says so and ends
    assert set(starts[3:]) == {1}  # then it waits for space


def test_reading_needs_no_space_and_writing_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "store"
    assert work(controller(DirectoryStore(path), limits=Limits(max_evaluations=3))) is not None
    monkeypatch.setattr(directory, "write_new", FullDisk(0, 1_000_000).write_new)
    for command in (["status", NAME], ["ls"], ["show", NAME, "1"], ["verify", NAME]):
        assert main([*command, "--store", str(path)]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["set", NAME, "workers=1", "--store", str(path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"hiernas: store: {path}/{NAME}/control/000000.json: the disk is full; free some space")
    assert len(said.splitlines()) == 1


def test_reading_makes_no_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "absent"), make=False)
    assert store.list("") == []
    with pytest.raises(KeyError):
        store.read("run/run.json")
    with pytest.raises(StoreUnavailable):
        store.create("run/run.json", b"")
    assert list(tmp_path.iterdir()) == []


# -- a live run


@contextlib.contextmanager
def file_system(place: Path) -> Iterator[Path]:
    """A megabyte of its own."""
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "hiernas-test", str(place)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this user may not mount a file system ({made.stderr.strip()}); the other tests of this file show a full disk without")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Take all the space that is left, into a file of that name."""
    filler = place / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    return filler


@only_linux
def test_a_real_full_file_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with file_system(tmp_path / "disk") as disk, contextlib.closing(Live(tmp_path, 8, 3, "trainers:held", disk / "runs")) as live:
        filler = fill(disk)
        controller = live.start(lock=True)
        assert controller.wait() == 1
        assert controller.said.startswith(f"hiernas: store: {disk}/runs")
        assert "the disk is full; free some space" in controller.said
        assert len(controller.said.splitlines()) == 1
        filler.unlink()

        controller = live.start(lock=True)
        live.wait_for_held(3)
        fill(disk)
        live.let_go()
        controller.wait_to_say("the disk is full; free some space")
        assert controller.running
        assert main(["verify", "live", "--store", str(live.path)]) == 0, capsys.readouterr()
        assert main(["set", "live", "workers=1", "--store", str(live.path)]) == 1
        assert list((live.path / ".tmp").iterdir()) == []
        filler.unlink()
        assert controller.wait() == 0
        live.check_finished()
        assert live.state.controllers[0].kind == "claim"
        assert len(live.state.controllers) == 2
        assert live.ends == []  # what was trained was kept until it could be written


def limit(live: Live, size: int) -> None:
    """Let no file of the run's processes grow over a size; what they start inherits it."""
    for one in live.relatives():
        with contextlib.suppress(psutil.NoSuchProcess):
            one.rlimit(psutil.RLIMIT_FSIZE, (size, psutil.RLIM_INFINITY))


@pytest.fixture
def cut_short(tmp_path: Path) -> Iterator[tuple[Live, Process]]:
    """A live run whose writes the system cuts short, logs included."""
    with contextlib.closing(Live(tmp_path, 8, 3, "trainers:held")) as live:
        controller = live.start()
        live.wait_for_held(3)
        limit(live, 0)
        live.let_go()
        controller.wait_to_say("raise the limit (ulimit -f)")
        assert controller.running
        live.check_whole()
        yield live, controller


@only_linux
def test_a_live_run_waits_while_nothing_can_be_written(cut_short: tuple[Live, Process]) -> None:
    live, controller = cut_short
    limit(live, psutil.RLIM_INFINITY)
    assert controller.wait() == 0
    live.check_finished()
    assert live.ends == []  # what was trained was kept until it could be written


@only_linux
def test_a_person_may_end_a_run_that_waits_and_continue_it_later(cut_short: tuple[Live, Process]) -> None:
    live, controller = cut_short
    controller.signal(2)
    controller.wait_to_say("Ctrl-C again")
    controller.signal(2)
    assert controller.wait() == 1
    assert "ulimit -f" in controller.said.splitlines()[-1]
    until(lambda: not live.relatives(), lambda: str(live.relatives()))
    live.check_whole()
    assert live.start().wait() == 0
    live.check_finished()
