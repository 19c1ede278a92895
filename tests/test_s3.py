"""The S3 store over HTTP against a real server, through a proxy that cuts, stalls, resets and refuses."""

import itertools
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3_server import BUCKET, Exchange, Fault, Proxy, S3Server, environment
from small_run import check_finished, controller, work

from pipeline import s3 as s3_module
from pipeline.errors import ConfigError, StoreUnavailable
from pipeline.s3 import S3Store
from pipeline.store import KEYS_VARIABLE, MAX_OBJECT_BYTES, BadObject, Store, open_store, read_many
from search.limits import Limits

COUNT = 8


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that passes everything on until told otherwise; timeouts and pauses are short."""
    monkeypatch.setattr(s3_module, "READ_SECONDS", 0.25)
    monkeypatch.setattr(s3_module, "PAUSE_SECONDS", 0.001)
    proxy = Proxy(s3)
    with environment(proxy.url):
        yield proxy
    proxy.close()


def fresh(prefix: str = "p") -> S3Store:
    return S3Store(BUCKET, f"{prefix}-{secrets.token_hex(6)}")


def search(store: Store) -> None:
    """Begin again until it can: only the first claim says at once that the store does not answer."""
    while True:
        try:
            assert work(controller(store, limits=Limits(max_evaluations=COUNT))) is not None
            return
        except StoreUnavailable:
            continue


def first(count: int, act: Fault, method: str = "PUT") -> Fault:
    """Do it to the first so many requests of a method."""
    left = itertools.count(1)

    def fault(exchange: Exchange) -> None:
        if exchange.method == method and next(left) <= count:
            act(exchange)

    return fault


def reset(exchange: Exchange) -> None:
    exchange.cut = 0


def refuse_connection(exchange: Exchange) -> None:
    exchange.reach, exchange.cut = False, 0


def stall(exchange: Exchange) -> None:
    exchange.stall = 0.4


def status(number: int, code: str, reach: bool) -> Fault:
    def act(exchange: Exchange) -> None:
        exchange.reach, exchange.answer, exchange.code = reach, number, code

    return act


def cut(after: int) -> Fault:
    def act(exchange: Exchange) -> None:
        exchange.cut = after

    return act


PASSING = {
    "reset after it landed": reset,
    "reset before it landed": refuse_connection,
    "stalled after it landed": stall,
    "500 after it landed": status(500, "InternalError", True),
    "500 before it landed": status(500, "InternalError", False),
    "503 before it landed": status(503, "SlowDown", False),
    "429": status(429, "TooManyRequests", False),
    "409 before it landed": status(409, "ConditionalRequestConflict", False),
    "409 after it landed": status(409, "ConditionalRequestConflict", True),
    "400 RequestTimeout": status(400, "RequestTimeout", False),
}
"""What says nothing of what lies in the store."""


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("times", [1, 3])
def test_a_write_that_was_not_answered_is_repeated(proxy: Proxy, fault: Fault, times: int) -> None:
    store = fresh()
    proxy.fault = first(times, fault)
    assert store.create("x/1.json", b"one") == b"one"
    proxy.fault = first(times, fault)
    assert store.create("x/1.json", b"two") == b"one"
    assert store.read("x/1.json") == b"one"


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("lasts", [s3_module.TRIES, s3_module.TRIES + 2])
def test_nothing_is_told_and_nothing_else_written_before_such_a_write_is_settled(proxy: Proxy, fault: Fault, lasts: int) -> None:
    store = fresh()
    proxy.fault = first(lasts, fault)
    with pytest.raises(StoreUnavailable):
        store.create("x/1.json", b"one")
    for other in (lambda: store.read("x/0.json"), lambda: store.list("x/")) if lasts > s3_module.TRIES else ():
        proxy.fault = first(s3_module.TRIES, fault)
        with pytest.raises(StoreUnavailable):
            other()
    proxy.fault = lambda _: None
    assert store.list("x/") == ["x/1.json"]  # it was repeated before this was answered
    assert store.create("x/1.json", b"two") == b"one"


@pytest.mark.parametrize("fault", [reset, stall, cut(3), status(500, "InternalError", False), status(503, "SlowDown", False)])
@pytest.mark.parametrize("act", ["read", "list"])
def test_a_read_that_was_cut_is_repeated(proxy: Proxy, fault: Fault, act: str) -> None:
    store = fresh()
    store.create("x/1.json", b"one hundred bytes" * 10)
    proxy.fault = first(2, fault, "GET")
    if act == "read":
        assert store.read("x/1.json") == b"one hundred bytes" * 10
    else:
        assert store.list("x/") == ["x/1.json"]
    proxy.fault = first(s3_module.TRIES, fault, "GET")
    with pytest.raises(StoreUnavailable, match="Nothing is lost"):
        store.read("x/1.json") if act == "read" else store.list("x/")


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [(403, "AccessDenied", "s3:PutObject"), (400, "ExpiredToken", "renew"), (403, "RequestTimeTooSkewed", "clock"), (404, "NoSuchBucket", "no such bucket")],
)
def test_a_refusal_is_told_at_once_with_what_to_do(proxy: Proxy, number: int, code: str, advice: str) -> None:
    store = fresh()
    proxy.fault = status(number, code, False)
    for act in (lambda: store.create("x/1.json", b"one"), lambda: store.read("x/1.json"), lambda: store.list("x/")):
        before = proxy.seen
        with pytest.raises(StoreUnavailable, match=advice):
            act()
        assert proxy.seen == before + 1
    proxy.fault = lambda _: None
    assert store.create("x/1.json", b"two") == b"two"  # what was refused has not landed: other bytes may be put there


def test_a_refusal_behind_a_write_that_may_have_landed_settles_nothing(proxy: Proxy) -> None:
    store = fresh()
    answers = iter([reset, status(403, "AccessDenied", False)])
    proxy.fault = lambda exchange: next(answers)(exchange)
    with pytest.raises(StoreUnavailable, match="denied"):
        store.create("x/1.json", b"one")
    proxy.fault = lambda _: None
    assert store.create("x/1.json", b"two") == b"one"


def test_a_store_that_overwrites_is_refused(proxy: Proxy) -> None:
    proxy.fault = lambda exchange: setattr(exchange, "answer", 200) if exchange.method == "PUT" else None
    with pytest.raises(ConfigError, match="create-only"):
        fresh()


def test_wrong_addresses_and_buckets_are_told_at_once(proxy: Proxy) -> None:
    with pytest.raises(StoreUnavailable, match="no such bucket"):
        open_store("s3://elsewhere/x")
    with environment("http://127.0.0.1:9"), pytest.raises(StoreUnavailable, match="AWS_ENDPOINT_URL"):
        open_store(f"s3://{BUCKET}/x")


def test_without_credentials_it_says_which(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StoreUnavailable, match="AWS_SECRET_ACCESS_KEY"):
        open_store(f"s3://{BUCKET}/x")
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(ConfigError, match="absent"):
        open_store(f"s3://{BUCKET}/x")


def test_an_object_that_is_none_of_ours_is_refused_unread(s3: S3Server) -> None:
    store = fresh()
    store._client.put_object(Bucket=BUCKET, Key=f"{store._prefix}large", Body=b"0" * (MAX_OBJECT_BYTES + 1))
    with pytest.raises(BadObject, match="bytes"):
        store.read("large")


def test_stores_in_one_bucket_do_not_see_each_other(s3: S3Server) -> None:
    one, two, root = S3Store(BUCKET, "own/a"), S3Store(BUCKET, "own/a/b"), S3Store(BUCKET)
    one.create("x", b"1")
    two.create("x", b"2")
    S3Store(BUCKET, "own/ab").create("y", b"3")
    assert (one.list(""), two.list(""), one.read("x"), two.read("x")) == (["b/create-only", "b/x", "x"], ["x"], b"1", b"2")
    assert root.list("own/") == ["own/a/b/create-only", "own/a/b/x", "own/a/create-only", "own/a/x", "own/ab/create-only", "own/ab/y"]


def test_a_long_list_comes_in_pages(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fresh()
    keys = [f"x/{number:06d}.json" for number in range(25)]
    for key in keys:
        store.create(key, b"")
    real = store._client.list_objects_v2
    pages: Counter[str] = Counter()

    def few(**arguments: object) -> object:
        pages["asked"] += 1
        return real(**arguments, MaxKeys=10)

    monkeypatch.setattr(store._client, "list_objects_v2", few)
    assert store.list("x/") == keys
    assert pages["asked"] == 3
    assert store.list("x/", keys[3]) == keys[4:]


def test_many_reads_come_in_order_and_keep_few_connections(proxy: Proxy) -> None:
    store = fresh()
    keys = [f"x/{number:06d}.json" for number in range(60)]
    for key in keys:
        store.create(key, key.encode())
    assert list(read_many(store, keys)) == [key.encode() for key in keys]
    with pytest.raises(KeyError):
        list(read_many(store, [*keys, "x/absent"]))
    assert 1 < proxy.connections <= s3_module.PARALLEL + 1


def test_a_file_is_put_once_and_comes_whole_through_faults(proxy: Proxy, tmp_path: Path) -> None:
    store = fresh()
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.write_bytes(secrets.token_bytes(3 * 1024 * 1024 + 7))
    for fault in (reset, status(500, "InternalError", True), status(503, "SlowDown", False)):
        proxy.fault = first(2, fault)
        store.put_file("_datasets/x/train.safetensors", source)
    for fault in (reset, cut(2_000_000), status(500, "InternalError", False)):
        proxy.fault = first(2, fault, "GET")
        store.get_file("_datasets/x/train.safetensors", copy)
        assert copy.read_bytes() == source.read_bytes()
    source.write_bytes(b"other")
    store.put_file("_datasets/x/train.safetensors", source)
    store.get_file("_datasets/x/train.safetensors", copy)
    assert len(copy.read_bytes()) > 5
    with pytest.raises(KeyError):
        store.get_file("absent", copy)


@pytest.mark.parametrize("seed", range(2))
def test_a_search_through_faults_comes_to_the_same(proxy: Proxy, seed: int) -> None:
    """Every third request meets a fault; the run is whole, and each candidate has one outcome."""
    dice = random.Random(seed)
    faults = [*PASSING.values(), cut(3)]
    met: Counter[str] = Counter()

    def fault(exchange: Exchange) -> None:
        if dice.random() < 0.3 and exchange.cut is None:
            chosen = dice.choice([one for one in faults if one is not stall] if dice.random() < 0.95 else [stall])
            met["fault"] += 1
            chosen(exchange)

    store = fresh("search")
    proxy.fault = fault
    search(store)
    proxy.fault = lambda _: None
    check_finished(store, COUNT)
    assert met["fault"] > COUNT


def test_a_server_killed_and_started_again_loses_nothing(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's machine dies in the middle of a search (its disk does not), again and again."""
    server = S3Server(tmp_path_factory.mktemp("bucket"))
    server.start()
    ended = threading.Event()

    def kill() -> None:
        while not ended.wait(0.5):
            server.kill()
            time.sleep(0.2)
            server.start()

    try:
        with environment(server.url), ThreadPoolExecutor(1) as pool:
            store = fresh("killed")
            killer = pool.submit(kill)
            try:
                search(store)
            finally:
                ended.set()
                killer.result()
            check_finished(store, COUNT)
    finally:
        server.kill()


def test_renewed_keys_reach_a_store_that_is_in_use(proxy: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Secret as a volume: what the environment holds stays as it was when the process began."""
    valid = "FIRST"

    def check(exchange: Exchange) -> None:
        if f"Credential={valid}/" not in exchange.headers.get("Authorization", ""):
            exchange.reach, exchange.answer, exchange.code = False, 403, "InvalidAccessKeyId"

    def mount(key: str) -> None:
        for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", key.lower() + "\n")):
            (tmp_path / name).write_text(value)

    mount("FIRST")
    monkeypatch.setenv(KEYS_VARIABLE, str(tmp_path))
    proxy.fault = check
    store = fresh()
    store.create("a", b"1")
    valid = "SECOND"
    with pytest.raises(StoreUnavailable, match="access key is unknown"):
        store.create("b", b"2")
    mount("SECOND")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: store.create(f"c{number}", b"3"), range(16))) == [b"3"] * 16
    assert store.create("b", b"2") == b"2"
    assert store.read("a") == b"1"
    (tmp_path / "AWS_SECRET_ACCESS_KEY").unlink()  # half a key is none
    assert store.list("") == sorted(["a", "b", *(f"c{number}" for number in range(16))])
    proxy.fault = lambda _: None
    assert fresh()._keys == {}  # the environment has the word


def test_folders_are_one_request_whatever_is_in_them_and_more_only_for_a_thousand(proxy: Proxy) -> None:
    store = fresh()
    for number in range(1_050):
        store.create(f"run-{number % 25 if number < 100 else number:04d}/{number:06d}.json", b"")
    seen = proxy.seen
    names = store.folders()
    assert (len(names), names) == (25 + 950, sorted(set(names)))
    assert proxy.seen - seen == 1
    for number in range(50):
        store.create(f"more-{number}/run.json", b"")
    seen = proxy.seen
    assert len(store.folders()) == 25 + 950 + 50
    assert proxy.seen - seen == 2
