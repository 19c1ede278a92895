"""Data sets on their way from `hiernas submit` through a real S3 server to a worker: whole and checked, or not there at all."""

import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from s3_server import BUCKET, Exchange, Proxy, S3Server, environment

from pipeline import s3 as s3_module
from pipeline import transfer
from pipeline.directory import DirectoryStore
from pipeline.errors import ConfigError, MachineFault, StoreUnavailable
from pipeline.s3 import S3Store
from search.dataset import SPLITS, Dataset, Split
from search.records import DataReference

BYTES = {part: f"the images of {part}".encode() * 1000 for part in SPLITS}
KEPT = [transfer.DESCRIPTION, "train.safetensors", "validation.safetensors"]
"""What a worker has in the end: no test split."""


class Untouchable:
    """A store that nobody may ask."""

    def put_file(self, key: str, path: Path) -> None:
        raise AssertionError(f"{key} was put")

    def get_file(self, key: str, path: Path) -> None:
        raise AssertionError(f"{key} was fetched")


def described(content: dict[str, bytes]) -> Dataset:
    splits = {part: Split(f"{part}.safetensors", hashlib.sha256(data).hexdigest(), 1) for part, data in content.items()}
    return Dataset("tiny", 2, 1, 8, (0.5,), (0.25,), splits)


DATASET = described(BYTES)
WANTED = DataReference("tiny", DATASET.digest)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The data set as `hiernas data prepare` leaves it."""
    folder = tmp_path / "prepared"
    folder.mkdir()
    for part, data in BYTES.items():
        (folder / f"{part}.safetensors").write_bytes(data)
    (folder / transfer.DESCRIPTION).write_bytes(DATASET.to_json())
    return folder


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The way to the server, to be disturbed."""
    monkeypatch.setattr(s3_module, "PAUSE_SECONDS", 0.001)
    proxy = Proxy(s3)
    try:
        with environment(proxy.url):
            yield proxy
    finally:
        proxy.close()


@pytest.fixture
def store(proxy: Proxy) -> S3Store:
    """An empty one."""
    return S3Store(BUCKET, f"transfer-{secrets.token_hex(6)}")


def stored(store: S3Store) -> dict[str, bytes]:
    """Everything that lies there of data sets, asked of the server itself."""
    client = boto3.client("s3")
    prefix = store.full_key("_datasets/")
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]
    return {name.removeprefix(prefix): client.get_object(Bucket=BUCKET, Key=name)["Body"].read() for name in names}


def overwrite(store: S3Store, file: str, data: bytes) -> None:
    """What we never do: damage an object, or mend it."""
    boto3.client("s3").put_object(Bucket=BUCKET, Key=store.full_key(transfer.key(WANTED.digest, file)), Body=data)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def check_whole(folder: Path) -> None:
    assert files(folder) == sorted(KEPT)
    assert (folder / transfer.DESCRIPTION).read_bytes() == DATASET.to_json()
    for part in ("train", "validation"):
        assert (folder / f"{part}.safetensors").read_bytes() == BYTES[part]


# -- to the store


def test_all_but_the_test_split_is_put_and_the_description_last(store: S3Store, proxy: Proxy, prepared: Path) -> None:
    puts: list[str] = []
    proxy.fault = lambda exchange: puts.append(exchange.path.rpartition("/")[2]) if exchange.method == "PUT" else None
    transfer.put(store, DATASET, prepared)
    assert puts[-1] == transfer.DESCRIPTION
    assert sorted(stored(store)) == sorted(f"{WANTED.digest}/{name}" for name in KEPT)


def test_putting_a_data_set_again_changes_nothing(store: S3Store, prepared: Path) -> None:
    transfer.put(store, DATASET, prepared)
    before = stored(store)
    (prepared / "train.safetensors").write_bytes(b"altered in the meantime")
    transfer.put(store, DATASET, prepared)
    assert stored(store) == before


def test_a_put_that_broke_off_is_completed_by_the_next(store: S3Store, proxy: Proxy, prepared: Path, tmp_path: Path) -> None:
    def fault(exchange: Exchange) -> None:
        if exchange.method == "PUT" and "validation" in exchange.path:
            exchange.reach, exchange.cut = False, 0

    proxy.fault = fault
    with pytest.raises(StoreUnavailable):
        transfer.put(store, DATASET, prepared)
    proxy.fault = lambda _: None
    assert list(stored(store)) == [f"{WANTED.digest}/train.safetensors"]
    with pytest.raises(MachineFault, match=r"no _datasets/.*dataset\.json"):
        transfer.fetch(store, WANTED, tmp_path / "early")  # nobody takes the half for the whole
    transfer.put(store, DATASET, prepared)
    transfer.fetch(store, WANTED, tmp_path / "data")
    check_whole(tmp_path / "data" / "tiny")


# -- from the store


def test_a_mounted_data_set_is_taken_as_it_is_and_nothing_is_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / transfer.DESCRIPTION).write_text("whatever is mounted: opening it checks it")
    transfer.fetch(Untouchable(), WANTED, tmp_path)
    assert files(folder) == [transfer.DESCRIPTION]
    assert (folder / transfer.DESCRIPTION).read_text().startswith("whatever")


def test_a_data_set_that_is_absent_is_fetched_without_its_test_split_and_only_once(store: S3Store, prepared: Path, tmp_path: Path) -> None:
    transfer.put(store, DATASET, prepared)
    transfer.fetch(store, WANTED, tmp_path / "data")
    check_whole(tmp_path / "data" / "tiny")
    transfer.fetch(Untouchable(), WANTED, tmp_path / "data")


@pytest.mark.parametrize("part", ["train", "validation"])
def test_other_bytes_in_the_store_are_named_and_never_taken_for_good(store: S3Store, prepared: Path, tmp_path: Path, part: str) -> None:
    transfer.put(store, DATASET, prepared)
    other = BYTES[part][:-1] + b"?"
    overwrite(store, f"{part}.safetensors", other)
    folder = tmp_path / "data" / "tiny"
    for _ in range(2):  # the second try meets what the first has left
        with pytest.raises(MachineFault) as caught:
            transfer.fetch(store, WANTED, tmp_path / "data")
        told = str(caught.value)
        assert f"{part}.safetensors" in told
        assert hashlib.sha256(other).hexdigest() in told
        assert DATASET.splits[part].sha256 in told
        assert not (folder / transfer.DESCRIPTION).exists()
    overwrite(store, f"{part}.safetensors", BYTES[part])
    transfer.fetch(store, WANTED, tmp_path / "data")
    check_whole(folder)


def test_a_transfer_that_is_cut_off_leaves_nothing_that_a_second_try_takes_for_good(store: S3Store, proxy: Proxy, prepared: Path, tmp_path: Path) -> None:
    transfer.put(store, DATASET, prepared)

    def fault(exchange: Exchange) -> None:
        if "validation" in exchange.path:
            exchange.cut = 100

    proxy.fault = fault
    with pytest.raises(StoreUnavailable):
        transfer.fetch(store, WANTED, tmp_path / "data")
    assert not (tmp_path / "data" / "tiny" / transfer.DESCRIPTION).exists()
    proxy.fault = lambda _: None
    transfer.fetch(store, WANTED, tmp_path / "data")
    check_whole(tmp_path / "data" / "tiny")


ALTERED = described(BYTES | {"train": b"others"})


@pytest.mark.parametrize(
    ("description", "words"),
    [(ALTERED.to_json(), f"has digest {ALTERED.digest}, expected {DATASET.digest}"), (DATASET.to_json()[:-20], "cannot be read"), (b"", "cannot be read")],
    ids=["of another data set", "half", "empty"],
)
def test_a_description_that_is_not_the_runs_is_refused(store: S3Store, prepared: Path, tmp_path: Path, description: bytes, words: str) -> None:
    transfer.put(store, DATASET, prepared)
    overwrite(store, transfer.DESCRIPTION, description)
    with pytest.raises(MachineFault, match=words):
        transfer.fetch(store, WANTED, tmp_path)
    assert not {*files(tmp_path / "tiny")} & {*KEPT}


@pytest.mark.parametrize("absent", ["all of it", "train.safetensors"])
def test_a_store_without_the_data_set_says_what_to_do(store: S3Store, prepared: Path, tmp_path: Path, absent: str) -> None:
    if absent != "all of it":
        transfer.put(store, DATASET, prepared)
        boto3.client("s3").delete_object(Bucket=BUCKET, Key=store.full_key(transfer.key(WANTED.digest, absent)))
    with pytest.raises(MachineFault, match="`hiernas submit` puts data sets there; or mount the data set") as caught:
        transfer.fetch(store, WANTED, tmp_path)
    assert transfer.key(WANTED.digest, transfer.DESCRIPTION if absent == "all of it" else absent) in str(caught.value)
    assert not (tmp_path / "tiny" / transfer.DESCRIPTION).exists()


def test_a_place_that_keeps_no_data_set_is_this_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(MachineFault, match=r"data set 'tiny' cannot be kept in .*file/tiny: Not a directory"):
        transfer.fetch(Untouchable(), WANTED, tmp_path / "file")


def test_only_stores_that_pods_reach_keep_data_sets(store: S3Store, tmp_path: Path) -> None:
    assert transfer.files_of(store, store.url) is store
    with pytest.raises(ConfigError, match=r"s3://bucket/prefix"):
        transfer.files_of(DirectoryStore(tmp_path), str(tmp_path))
