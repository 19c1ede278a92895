"""Does a search lose anything on Ceph's object gateway (RGW), the real S3 server that Debian has?

    make prove-rgw

A cluster of its own is started (tests/rgw.py: monitor, OSD, radosgw on loopback; missing packages are installed, as root). Then
1. the contract of stores and the tests of the S3 store (tests/test_stores.py, tests/test_s3.py) run against it;
2. 32 processes write other bytes under the same 200 keys, key by key at the same moment: one must win each, and all must be told its bytes;
   the same once more with bare requests, sent over 32 open connections before any answer is read, also to buckets with versioning;
3. a search of 200 candidates with trainings that return at once writes there, while 4 more writers race for keys of their own. radosgw gets SIGKILL
   some milliseconds after every 40th write of the search, three times OSD and monitor instead, and starts again. At its end `verify` must find no
   error, each candidate have one outcome, and nothing may be gone, changed or missing in a list that any answer told before.
A broken promise ends this with an error. Takes some 12 minutes; writes results/rgw.json.
"""

import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from http.client import HTTPConnection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import boto3
import record
from botocore.exceptions import ClientError

sys.path.insert(0, str(record.ROOT / "tests"))
import rgw
from s3_server import BUCKET, environment
from small_run import Passing, check_finished, controller, work

from pipeline import s3
from pipeline.errors import StoreUnavailable
from pipeline.s3 import S3Store
from search.limits import Limits

WRITERS, KEYS = 32, 200
CANDIDATES, BESIDE = 200, 4
KILL_EVERY = 40
"""Writes of the search."""
CLUSTER_KILLS = (4, 9, 14)
"""Which kills take OSD and monitor: radosgw goes on, with requests in hand that land when the two are back."""
CLUSTER_DOWN_SECONDS = 6.0
READ_SECONDS = 2.0
"""Instead of the store's own: shorter than the outage, so that writes are given up here and land there later."""


class Seen(S3Store):
    """Counts what each single PUT was answered."""

    def __init__(self, prefix: str, make: bool = True) -> None:
        self.answers: Counter[str] = Counter()
        super().__init__(BUCKET, prefix, make)

    def _put(self, key: str, data: bytes) -> None:
        try:
            super()._put(key, data)
        except ClientError as error:
            self.answers[f"{error.response['ResponseMetadata']['HTTPStatusCode']} {error.response['Error'].get('Code', '')}"] += 1
            raise
        except Exception as error:
            self.answers[type(error).__name__] += 1
            raise
        self.answers["200"] += 1


class Witness(Passing):
    """Keeps all bytes that were told of each key, and counts answers that contradict earlier ones. Safe for several threads."""

    def __init__(self, store: S3Store) -> None:
        super().__init__(store)
        self.parallel = store.parallel
        self.told: defaultdict[str, set[bytes]] = defaultdict(set)
        self.contradictions: Counter[str] = Counter()
        self.writes = 0

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.writes += 1
        stored = super().create(key, data)
        self.told[key].add(stored)
        return stored

    def read(self, key: str) -> bytes:
        """See Store."""
        known = key in self.told
        try:
            stored = super().read(key)
        except KeyError:
            self.contradictions["absent after it was told"] += known
            raise
        self.told[key].add(stored)
        return stored

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        known = {key for key in list(self.told) if key.startswith(prefix) and (after is None or key > after)}
        found = super().list(prefix, after)
        self.contradictions["missing in a list after it was told"] += len(known - set(found))
        return found


def contract() -> dict[str, Any]:
    """The tests, in a process of their own with a cluster of their own; but for the one that kills ministack, and one with keys that no server knows."""
    began = time.monotonic()
    command = [sys.executable, "-m", "pytest", "tests/test_stores.py", "tests/test_s3.py", "-k", "not server_killed and not renewed_keys"]
    done = subprocess.run(command, cwd=record.ROOT, env={**os.environ, "HIERNAS_TEST_S3": "rgw"}, capture_output=True, text=True, check=False)
    require(done.returncode == 0, done.stdout[-4000:])
    return {"tests": re.findall(r"\d+ passed.*?(?= in )", done.stdout)[-1], "seconds": round(time.monotonic() - began)}


def race() -> dict[str, Any]:
    """A process for each writer, with a client of its own."""
    Seen("race")
    context = multiprocessing.get_context("fork")
    gate, told = context.Barrier(WRITERS), context.Queue()
    processes = [context.Process(target=_write, args=(writer, gate, told)) for writer in range(WRITERS)]
    for process in processes:
        process.start()
    found = [told.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    answers: Counter[str] = sum((one[1] for one in found), Counter())
    store = S3Store(BUCKET, "race", make=False)
    for number in range(KEYS):
        lies = store.read(_key(number))
        require({one[0][number] for one in found} == {lies}, f"key {number}: the writers were not told the same")
    require(store.list("race/") == [_key(number) for number in range(KEYS)], "the list is not complete")
    unanswered = KEYS - answers["200"]
    require(unanswered >= 0, f"{answers['200']} writes were told that they won {KEYS} keys")
    return {
        "keys": KEYS,
        "told of winning": answers["200"],
        "won without being told at once": unanswered,
        "answers to single PUTs": dict(answers.most_common()),
        "milliseconds of a create": record.spread([seconds * 1000 for one in found for seconds in one[2]], 1),
    }


def _write(writer: int, gate: Barrier, told: "Queue[tuple[list[bytes], Counter[str], list[float]]]") -> None:
    store = Seen("race", make=False)
    stored, took = [], []
    for number in range(KEYS):
        gate.wait(timeout=300)
        began = time.monotonic()
        while True:
            try:
                stored.append(store.create(_key(number), f"{writer} was here".encode()))
                break
            except StoreUnavailable:
                store.answers["given up and begun again"] += 1
        took.append(time.monotonic() - began)
    told.put((stored, store.answers, took))


def _key(number: int) -> str:
    return f"race/{number:06d}.json"


def race_at_once(ceph: rgw.Ceph, bucket: str, versioning: str = "") -> dict[str, Any]:
    """Bare requests, as close together as one machine can send them; only in a bucket without versioning must one win."""
    client = boto3.client("s3")
    if versioning:
        client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": versioning})
    connections = [HTTPConnection(ceph.host, ceph.port, timeout=60) for _ in range(WRITERS)]
    answers, winners = Counter[str](), Counter[int]()
    for number in range(KEYS):
        key = f"at-once/{number:06d}.json"
        url = client.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key, "IfNoneMatch": "*"})
        for writer, connection in enumerate(connections):
            connection.request("PUT", url.removeprefix(ceph.url), f"{writer}".encode(), {"If-None-Match": "*"})
        told = [_answer(connection) for connection in connections]
        won = [f"{writer}".encode() for writer, answer in enumerate(told) if answer == "200"]
        answers.update(told)
        winners[len(won)] += 1
        require(versioning != "" or won == [client.get_object(Bucket=bucket, Key=key)["Body"].read()], f"{key}: {won} won")
    for connection in connections:
        connection.close()
    return {"answers": dict(answers.most_common()), "keys by number of winners": dict(winners)}


def _answer(connection: HTTPConnection) -> str:
    response = connection.getresponse()
    code = re.search(rb"<Code>(\w+)", response.read())
    return f"{response.status} {code[1].decode()}" if code else f"{response.status}"


class Killer(threading.Thread):
    """Kills and starts the server, in the middle of whatever the search is doing."""

    def __init__(self, ceph: rgw.Ceph, search: Witness) -> None:
        super().__init__()
        self._ceph, self._search = ceph, search
        self._dice = random.Random(1)
        self.ended = threading.Event()
        self.kills: Counter[str] = Counter()
        self.down_seconds: list[float] = []

    def run(self) -> None:
        """Until `ended`."""
        next_kill = KILL_EVERY
        while not self.ended.wait(0.001):
            if self._search.writes < next_kill:
                continue
            time.sleep(self._dice.uniform(0, 0.02))
            began = time.monotonic()
            if sum(self.kills.values()) + 1 in CLUSTER_KILLS:
                self.kills["OSD and monitor"] += 1
                self._ceph.kill_cluster()
                self.ended.wait(CLUSTER_DOWN_SECONDS)
            else:
                self.kills["radosgw"] += 1
                self._ceph.kill()
            self._ceph.start()
            self.down_seconds.append(time.monotonic() - began)
            next_kill = self._search.writes + KILL_EVERY


def search(ceph: rgw.Ceph) -> dict[str, Any]:
    """A search to its end through kills, and what came of what was told."""
    began = time.monotonic()
    stores = [Seen("search"), *(Seen("beside") for _ in range(BESIDE))]
    witnesses = [Witness(store) for store in stores]
    killer = Killer(ceph, witnesses[0])
    beside = [threading.Thread(target=_race_on, args=(number, witness, killer.ended)) for number, witness in enumerate(witnesses[1:])]
    for thread in (killer, *beside):
        thread.start()
    try:
        claims = _to_the_end(witnesses[0])
    finally:
        killer.ended.set()
        for thread in (killer, *beside):
            thread.join()
    after = S3Store(BUCKET, "search", make=False)
    check_finished(after, CANDIDATES)
    told = _union(witnesses[:1]), _union(witnesses[1:])
    contradictions = sum((witness.contradictions for witness in witnesses), Counter())
    for prefix, of in zip(("search", "beside"), told, strict=True):
        store = S3Store(BUCKET, prefix, make=False)
        require(sorted(of) == store.list(""), f"{prefix}: what was told and what is listed differ")
        for key, values in of.items():
            require(values == {store.read(key)}, f"{prefix}: {key} was told to be {len(values)} things, or is another now")
    require(not +contradictions, f"answers contradicted earlier ones: {contradictions}")
    require(sum(killer.kills.values()) > max(CLUSTER_KILLS), f"too few kills: {killer.kills}")
    return {
        "candidates": CANDIDATES,
        "kills": dict(killer.kills),
        "seconds without the server, of each kill": record.spread(killer.down_seconds, 1),
        "claims of the controller": claims,
        "objects of the search": len(told[0]),
        f"objects of {BESIDE} writers beside it": len(told[1]),
        "answers to single PUTs": dict(sum((store.answers for store in stores), Counter()).most_common()),
        "gone, changed or missing in a list": 0,
        "seconds": round(time.monotonic() - began),
    }


def _to_the_end(store: Witness) -> int:
    """Begin again until it can: only the first claim says at once that the store does not answer."""
    for claims in range(1, 100):
        try:
            require(work(controller(store, limits=Limits(max_evaluations=CANDIDATES))) is not None, "another controller took over")
            return claims
        except StoreUnavailable:
            continue
    raise SystemExit("the search could not begin a hundred times")


def _race_on(number: int, store: Witness, ended: threading.Event) -> None:
    """Write the same keys as the others beside it, until the search has ended; each key is fought for until it is told whose it is."""
    key = 0
    while not ended.is_set():
        try:
            store.create(_key(key), f"{number} was here".encode() * 100)
        except StoreUnavailable:
            continue
        if key % 50 == 49:
            _look(store, _key(key - 40))
        key += 1
        ended.wait(0.02)
    while True:  # what was not answered may have landed: it is told too
        try:
            store.create(_key(key), f"{number} was here".encode() * 100)
            store.list("")
            return
        except StoreUnavailable:
            continue


def _look(store: Witness, after: str) -> None:
    try:
        for name in store.list("race/", after):
            store.read(name)
    except StoreUnavailable:
        pass


def _union(witnesses: list[Witness]) -> dict[str, set[bytes]]:
    told: defaultdict[str, set[bytes]] = defaultdict(set)
    for witness in witnesses:
        for key, values in witness.told.items():
            told[key] |= values
    return told


def require(holds: bool, message: str) -> None:
    """End with an error where something does not hold."""
    if not holds:
        raise SystemExit(f"broken: {message}")


def main() -> None:
    """All three."""
    rgw.install()
    figures: dict[str, Any] = {"ceph": rgw.version(), "contract": contract()}
    with tempfile.TemporaryDirectory(prefix="hiernas-rgw-", ignore_cleanup_errors=True) as folder:
        ceph = rgw.Ceph(Path(folder))
        try:
            began = time.monotonic()
            ceph.start()
            figures["seconds until an empty cluster serves"] = round(time.monotonic() - began, 1)
            with environment(ceph.url):
                figures[f"race of {WRITERS} processes"] = race()
                figures[f"race of {WRITERS} connections"] = race_at_once(ceph, BUCKET)
                figures["the same, versioning enabled"] = race_at_once(ceph, "enabled", "Enabled")
                figures["the same, versioning suspended"] = race_at_once(ceph, "suspended", "Suspended")
                s3.READ_SECONDS = READ_SECONDS
                figures["search"] = search(ceph)
        finally:
            ceph.stop()
    record.write("rgw", figures, packages=("boto3", "pytest"))


if __name__ == "__main__":
    main()
