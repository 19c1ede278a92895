"""The contract of a store, over every one that there is."""

import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from s3_server import BUCKET

from pipeline.directory import DirectoryStore
from pipeline.errors import ConfigError, HiernasError
from pipeline.store import MAX_OBJECT_BYTES, MemoryStore, Store, folders, open_store

MAKERS: dict[str, Callable[[Path], Store]] = {
    "memory": lambda _: MemoryStore(),
    "directory": DirectoryStore,
    "s3": lambda path: open_store(f"s3://{BUCKET}/{path.parent.name}-{secrets.token_hex(4)}"),
}


@pytest.fixture(params=MAKERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "s3":
        request.getfixturevalue("s3")
    return MAKERS[request.param](tmp_path / "store")


def test_the_first_write_wins_and_says_so(store: Store) -> None:
    assert store.create("run/a.json", b"one") == b"one"
    assert store.create("run/a.json", b"two") == b"one"
    assert store.create("run/a.json", b"one") == b"one"
    assert store.read("run/a.json") == b"one"


def test_an_absent_object_is_a_key_error(store: Store) -> None:
    for key in ("absent", "run/absent.json"):
        with pytest.raises(KeyError):
            store.read(key)
    assert store.list("absent/") == []


def test_a_list_is_sorted_complete_and_goes_on_after_a_key(store: Store) -> None:
    numbers = [0, 7, 998, 999, 1000, 1001, 1999, 2000, 12_345]
    keys = [f"run/history/{number:06d}.json" for number in numbers]
    for key in [*reversed(keys), "run/run.json", "run2/run.json", "run/attempts/001000-0.json"]:
        store.create(key, key.encode())
    assert store.list("run/history/") == keys
    for at, key in enumerate(keys):
        assert store.list("run/history/", key) == keys[at + 1 :]
        assert store.read(key) == key.encode()
    assert store.list("run/attempts/001000-") == ["run/attempts/001000-0.json"]
    assert store.list("") == sorted([*keys, "run/run.json", "run2/run.json", "run/attempts/001000-0.json"])
    assert store.list("run/") == sorted([*keys, "run/run.json", "run/attempts/001000-0.json"])


def test_folders_are_told_without_what_lies_beside_them(store: Store) -> None:
    assert folders(store) == []
    for key in ("b/run.json", "b/history/000000.json", "a-1/run.json", "_datasets/x", "b-1/deep/er/still", "alone"):
        store.create(key, b"")
    assert folders(store) == ["_datasets", "a-1", "b", "b-1"]


@pytest.mark.parametrize("key", ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", ".tmp/a", "a/.b", "-a", "a b", "a\n", "a\0", "ä", "x" * 513])
def test_a_key_that_some_store_cannot_keep_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        store.create(key, b"")


def test_what_no_record_is_as_large_as_is_refused(store: Store) -> None:
    with pytest.raises(HiernasError, match="bytes"):
        store.create("large", b"0" * (MAX_OBJECT_BYTES + 1))
    assert store.list("") == []


def test_of_racing_writers_one_wins_and_all_are_told_the_same(store: Store, tmp_path: Path) -> None:
    if isinstance(store, MemoryStore):
        pytest.skip("is for one thread")
    told: dict[tuple[int, int], bytes] = {}
    gate = threading.Barrier(8)

    def write(writer: int) -> None:
        for key in range(20):
            gate.wait()
            told[writer, key] = store.create(f"race/{key:06d}.json", str(writer).encode())

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for key in range(20):
        assert {told[writer, key] for writer in range(8)} == {store.read(f"race/{key:06d}.json")}
    assert not isinstance(store, DirectoryStore) or list((store.root / ".tmp").iterdir()) == []


def test_a_directory_keeps_later_thousands_in_folders_of_their_own(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    for number in (999, 1000, 12_345):
        store.create(f"run/history/{number:06d}.json", b"x")
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json"))
    assert files == ["run/history/000999.json", "run/history/001/001000.json", "run/history/012/012345.json"]


def test_a_store_is_opened_by_path_or_file_url(tmp_path: Path) -> None:
    open_store(str(tmp_path / "a")).create("x", b"1")
    assert open_store(f"file://{tmp_path}/a").read("x") == b"1"
    for url in ("", "ftp://x/y", "file://elsewhere/x", "s3:", "s3://", "s3:///x", "s3://bucket/a//b", "s3://bucket/../b", "s3://bucket/x?y", "s3://b/x"):
        with pytest.raises(ConfigError, match="store"):
            open_store(url)
    with pytest.raises(ConfigError) as told:
        open_store("s3://key:secret@bucket/x")
    assert "secret" not in str(told.value)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HiernasError, match="file"):
        DirectoryStore(tmp_path / "file")
