"""A run that moves: nothing is lost, nothing is decided twice, whoever is at work and wherever the command is interrupted."""

import io
import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3_server import BUCKET, S3Server
from small_run import LIMITS, NAME, RUN, FakeClock, Passing, check_finished, controller, errors, work
from trainers import instant

from pipeline import worker
from pipeline.cli import main
from pipeline.codec import decode, encode
from pipeline.config import Config
from pipeline.controller import Controller, Place
from pipeline.directory import DirectoryStore
from pipeline.errors import ConfigError, DamagedRun, Overtaken
from pipeline.move import COPY, Counter, begin_from, move
from pipeline.requests import request
from pipeline.run import RunFolder, attempt_key, candidate_key, controller_key, end_key, evaluation_key, history_key
from pipeline.store import MAX_OBJECT_BYTES, MemoryStore, Store, address, open_store
from pipeline.verify import verify
from search.records import Claim, End, EndReason, Moved, Release, ReleaseReason, Stamp
from search.state import State

COUNT = 7
SMALL = replace(LIMITS, max_evaluations=COUNT)
TO = "s3://elsewhere/runs"
CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


class Crash(BaseException):
    """As sudden as SIGKILL."""


class Hooked(Passing):
    """A store that calls a function before (or after) each write with the key."""

    def __init__(self, store: Store, before: Callable[[str], None] = lambda _: None, after: Callable[[str], None] = lambda _: None) -> None:
        super().__init__(store)
        self.before, self.after = before, after

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        self.before(key)
        stored = super().create(key, data)
        self.after(key)
        return stored


def countdown(left: int, act: Callable[[], None]) -> Callable[[str], None]:
    """Does it once, after so many calls."""

    def called(_: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            act()

    return called


def crash() -> None:
    raise Crash


def copy(source: Store, target: Store, to: str = TO, owner: str = "me@here", take_over: bool = False) -> str:
    """A new process of `hiernas copy`."""
    place = Place(secrets.token_hex(16), owner, secrets.token_hex(8))
    return move(RunFolder(source, NAME), target, to, place, FakeClock(), take_over, lambda *_: None)


def contents(store: Store) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list("")}


def state(store: Store) -> State:
    return RunFolder(store, NAME).load()


def moved(store: Store) -> Moved:
    found = RunFolder(store, NAME).moved()
    assert found is not None
    return found


def check_copied(source: Store, target: Store) -> None:
    """The target is the source without its last entry, both are whole, and nobody is in charge of either."""
    assert errors(source) == errors(target) == []
    there = contents(source)
    del there[f"{NAME}/{history_key(moved(source).number)}"]
    assert contents(target) == there
    assert isinstance(state(target).controllers[-1], Release)


def go_on(store: Store) -> None:
    """Any other owner may."""
    work(controller(store, owner="you@there", limits=SMALL))
    check_finished(store, COUNT)


def died(store: Store, last: str) -> None:
    """A run whose controller died right after it had written this."""

    def after(key: str) -> None:
        if key == f"{NAME}/{last}":
            raise Crash

    with pytest.raises(Crash):
        work(controller(Hooked(store, after=after), limits=SMALL))


def interrupted(store: Store, outcomes: int) -> None:
    """A run that a person has interrupted."""
    one = controller(store, limits=replace(SMALL, workers=1))
    one.claim()
    while len(one.state.history) < outcomes - 1:
        assert one.step()[1] is None
    one.interrupts = 2  # what runs comes in
    while one.step()[1] is None:
        pass
    assert len(one.state.history) == outcomes


def finished() -> MemoryStore:
    store = MemoryStore()
    assert work(controller(store, limits=SMALL)) is ReleaseReason.FINISHED
    return store


# -- from store to store


def test_a_run_goes_to_a_bucket_and_back_and_to_its_end(tmp_path: Path, s3: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = str(tmp_path / "a"), f"s3://{BUCKET}/copy-{secrets.token_hex(4)}", str(tmp_path / "c")
    interrupted(open_store(first), 3)
    assert main(["copy", NAME, "--store", first, "--to", second + "/"]) == 0
    assert f"has moved to {second}" in capsys.readouterr().out
    check_copied(open_store(first), open_store(second))
    go_on(open_store(second))
    longer = replace(SMALL, max_evaluations=COUNT + 2)
    request(RunFolder(open_store(second), NAME), {"max_evaluations": COUNT + 2}, None)
    assert main(["copy", NAME, "--store", second, "--to", third]) == 0
    check_copied(open_store(second), open_store(third))
    assert work(controller(open_store(third), limits=longer)) is ReleaseReason.FINISHED
    check_finished(open_store(third), COUNT + 2)
    for url in (first, second):
        assert main(["verify", NAME, "--store", url]) == 0
    histories = [state(open_store(url)).history for url in (first, second, third)]
    assert [len(history) for history in histories] == [3, COUNT, COUNT + 2]
    assert histories[2][:COUNT] == histories[1]
    assert histories[1][:3] == histories[0]


def test_a_finished_run_is_finished_where_it_goes() -> None:
    source, target = finished(), MemoryStore()
    copy(source, target)
    check_copied(source, target)
    check_finished(target, COUNT)
    first, last = (one for one in state(target).controllers if isinstance(one, Claim))
    assert last.limits == first.limits  # an edited config is compared with them
    assert work(controller(target, limits=SMALL)) is None


def test_what_cannot_be_read_is_left_behind_and_named(tmp_path: Path) -> None:
    source, target = DirectoryStore(tmp_path), MemoryStore()
    died(source, candidate_key(3))
    (tmp_path / NAME / "evaluations").mkdir(exist_ok=True)
    (tmp_path / NAME / "evaluations" / "000003-0.json").write_bytes(b"0" * (MAX_OBJECT_BYTES + 1))
    assert "left behind, it cannot be read: small/evaluations/000003-0.json" in copy(source, target, take_over=True)
    assert errors(target) == []


# -- interrupted


def test_a_copy_goes_on_after_a_crash_before_and_after_every_write() -> None:
    origin = MemoryStore()
    died(origin, attempt_key(5, 0))
    assert state(origin).open_attempts
    for after in (False, True):
        for survives in range(100):
            source, target = MemoryStore(), MemoryStore()
            for key, data in contents(origin).items():
                source.create(key, data)
            hook = countdown(survives, crash)
            one, two = ((Hooked(store, after=hook) if after else Hooked(store, hook)) for store in (source, target))
            try:
                copy(one, two, take_over=True)
                break
            except Crash:
                assert errors(source) == []
                if f"{NAME}/run.json" in contents(target):
                    check_copied(source, target)
            last = state(source).controllers[-1]
            if RunFolder(source, NAME).moved() is None:
                copy(source, target, take_over=isinstance(last, Claim) and last.executor != COPY)  # its own claim is in nobody's way
            else:
                copy(source, target, owner="another@there")  # nobody is in the way
            check_copied(source, target)
        assert survives == 3 + len(contents(target))
        go_on(target)


def test_the_same_command_again_changes_nothing() -> None:
    source, target = finished(), MemoryStore()
    copy(source, target)
    request(RunFolder(target, NAME), {"max_evaluations": COUNT + 1}, None)
    work(controller(target))
    before = contents(source), contents(target)
    assert "nothing was left to do" in copy(source, target)
    assert (contents(source), contents(target)) == before
    with pytest.raises(ConfigError, match=TO):
        copy(source, MemoryStore(), to="s3://elsewhere/again")


def test_of_two_copies_at_once_the_slower_leaves_the_target_alone() -> None:
    source = finished()
    target = MemoryStore()

    def overtake() -> None:
        copy(source, target)
        folder = RunFolder(source, NAME)  # so that the two are not the same
        folder.create(controller_key(len(folder.keys("controllers"))), Claim("e" * 32, "late@there", "late", None, "inline", SMALL, 1.0))
        request(RunFolder(target, NAME), {"max_evaluations": COUNT + 1}, None)
        work(controller(target))

    slower = Hooked(source, after=countdown(0, overtake))  # it has claimed, then sleeps
    copy(slower, target)
    check_finished(target, COUNT + 1)
    assert errors(source) == []


# -- the source at work


def test_a_run_in_somebodys_charge_is_not_moved_unasked() -> None:
    source, target = MemoryStore(), MemoryStore()
    one = controller(source, limits=SMALL)
    one.claim()
    one.step()
    before = contents(source)
    for owner in ("me@here", "you@there"):
        with pytest.raises(Overtaken, match="charge of me@here"):
            copy(source, target, owner=owner)
    assert contents(source) == before
    assert contents(target) == {}
    copy(source, target, owner="you@there", take_over=True)
    check_copied(source, target)
    before = contents(source)
    with pytest.raises(Overtaken, match=TO):
        one.step()
    with pytest.raises(Overtaken, match=TO):
        one.claim()
    assert contents(source) == before
    go_on(target)


def test_a_copy_that_somebody_takes_the_run_from_moves_nothing() -> None:
    source, target = MemoryStore(), MemoryStore()
    interrupted(source, 2)

    def take() -> None:
        one = controller(source, owner="you@there", take_over=True)
        assert one.claim()
        while len(one.state.history) == 2:
            one.step()

    with pytest.raises(Overtaken, match="taken over by you@there"):
        copy(Hooked(source, after=countdown(0, take)), target, take_over=True)
    assert RunFolder(source, NAME).moved() is None
    assert contents(target) == {}


@pytest.mark.parametrize("looks", [True, False])
def test_a_controller_stops_wherever_its_run_is_moved_away(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`looks` False: it never sees the claim in `controllers/`; the entry `moved` alone stops it, at the next outcome or proposal to end."""
    if not looks:
        monkeypatch.setattr(Controller, "_look", lambda self: None)
    stopped: list[str] = []
    for writes in range(2, 100):
        source, target = MemoryStore(), MemoryStore()
        hook = countdown(writes, lambda: copy(source, target, take_over=True) and None)  # noqa: B023
        one = controller(Hooked(source, hook), limits=SMALL)
        try:
            work(one)
        except Overtaken as error:
            stopped.append(str(error))
        assert errors(source) == []
        if not contents(target):
            break  # it was at its end before so many writes
        acknowledged = [data for key, data in contents(source).items() if "/history/" in key][:-1]
        assert acknowledged == [data for key, data in contents(target).items() if "/history/" in key]
        go_on(target)
    assert len(stopped) > 3 * COUNT
    assert all(TO in told for told in stopped)


def test_a_copy_is_whole_though_a_controller_that_does_not_know_goes_on_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Controller, "_look", lambda self: None)
    source, target = MemoryStore(), MemoryStore()
    started: list[str] = []
    one = controller(source, limits=replace(SMALL, workers=7))
    monkeypatch.setattr(one.executor, "start", lambda spec: started.append(spec.name))  # nothing is evaluated: it never meets the history
    one.claim()

    def write(_: str) -> None:
        """A decision of the old controller beside each write of the copy."""
        if len(started) < 7 and "/history/" not in _:
            one.state.limits = replace(SMALL, workers=len(started) + 1)
            one.step()

    copy(source, Hooked(target, write), take_over=True)
    assert len(started) == 7
    check_copied(source, target)
    go_on(target)


def test_a_claim_that_lands_during_the_copy_is_released() -> None:
    source, target = finished(), MemoryStore()
    folder = RunFolder(source, NAME)

    def claim() -> None:
        number = len(folder.keys("controllers"))
        folder.create(controller_key(number), Claim("e" * 32, "late@there", "late", None, "inline", SMALL, 1.0))

    copy(source, Hooked(target, countdown(5, claim)))
    check_copied(source, target)
    assert any(isinstance(one, Claim) and one.owner == "late@there" for one in state(target).controllers)


def test_a_late_evaluation_stays_at_the_source_and_its_attempt_is_repeated() -> None:
    source, target = MemoryStore(), MemoryStore()
    place = (2, 0)
    died(source, attempt_key(*place))
    assert "3 attempts were under way" in copy(source, target, take_over=True)
    assert worker.work(source, NAME, *place, lambda: instant, "nowhere") == 0
    assert evaluation_key(*place) in RunFolder(source, NAME).keys("evaluations")
    assert errors(source) == []
    before = contents(target)
    assert "nothing was left to do" in copy(source, target)
    assert contents(target) == before
    go_on(target)
    story = state(target).stories[place[0]]
    assert story.ends[0].reason is EndReason.CONTROLLER_LOST  # of a cluster's attempts the jobs are created again
    assert story.outcome is not None
    assert story.outcome.attempt == 1


# -- what is refused


def test_a_target_that_has_something_else_is_refused_before_anything_is_written() -> None:
    source = finished()
    before = contents(source)
    other = MemoryStore()
    work(controller(other, run=replace(RUN, run_id="b" * 32)))
    same = finished()
    stranger, different = MemoryStore(), MemoryStore()
    stranger.create(f"{NAME}/{candidate_key(99)}", b"x")
    different.create(f"{NAME}/{candidate_key(0)}", b"x")
    for target, words in ((other, "another run"), (same, "already"), (stranger, "none of this run's"), (different, "other bytes")):
        there = contents(target)
        with pytest.raises(ConfigError, match=words):
            copy(source, target)
        assert contents(target) == there
    assert contents(source) == before


def test_what_is_no_record_comes_along_and_may_go() -> None:
    source, target = finished(), MemoryStore()
    source.create(f"{NAME}/logs/000001-0.txt", b"x")
    target.create(f"{NAME}/checkpoints/000001-0", b"x")  # copied before, and dropped by its worker since
    copy(source, target)
    assert target.read(f"{NAME}/logs/000001-0.txt") == b"x"
    assert errors(target) == []


def test_a_run_that_was_moved_away_does_not_come_back_to_the_same_place() -> None:
    source, target = finished(), MemoryStore()
    copy(source, target)
    with pytest.raises(ConfigError, match=f"moved from there to {TO}"):
        copy(target, source, to="s3://first/runs")


def test_a_run_that_was_never_claimed_is_not_moved() -> None:
    source = MemoryStore()
    RunFolder(source, NAME).begin(RUN)
    with pytest.raises(ConfigError, match="begin it there"):
        copy(source, MemoryStore())
    assert len(contents(source)) == 1


def test_a_damaged_run_is_not_moved() -> None:
    damaged = MemoryStore()
    for key, data in contents(finished()).items():
        damaged.create(key, data[:-9] if key.endswith(history_key(3)) else data)
    target = MemoryStore()
    with pytest.raises(DamagedRun, match=history_key(3)):
        copy(damaged, target)
    assert contents(target) == {}


def test_every_command_names_the_new_place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = str(tmp_path / "a"), str(tmp_path / "b")
    interrupted(DirectoryStore(tmp_path / "a"), 2)
    assert main(["copy", NAME, "--store", here, "--to", f"file://{tmp_path}/x/../a"]) == 2
    assert main(["copy", NAME, "--store", here, "--to", there]) == 0
    capsys.readouterr()
    before = contents(open_store(here))
    monkeypatch.setattr(Config, "what", lambda *_: RUN)
    config = tmp_path / "small.yaml"
    limits = {"run: demo": f"run: {NAME}", "max_evaluations: 32": f"max_evaluations: {COUNT}", "workers: 2": "workers: 1"}  # as before
    text = CONFIG.read_text()
    for old, new in limits.items():
        assert old in text
        text = text.replace(old, new)
    config.write_text(text)
    for command in (f"run {config}", f"set {NAME} workers=2", f"pause {NAME}", f"resume {NAME}", f"stop {NAME}", f"copy {NAME} --to {tmp_path}/c"):
        assert main([*command.split(), "--store", here]) == 2
        assert f"was moved to {there} after 2 outcomes" in capsys.readouterr().err
    with pytest.raises(Overtaken, match=there):
        work(controller(open_store(here)))
    assert contents(open_store(here)) == before
    assert not (tmp_path / "c").exists() or contents(open_store(f"{tmp_path}/c")) == {}
    assert main(["status", NAME, "--store", here, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["moved_to"], told["evaluated"]) == ("moved", there, 2)
    assert main(["status", NAME, "--store", here, "--watch"]) == 0
    assert f"moved to          {there}" in capsys.readouterr().out
    assert main(["ls", "--store", here]) == 0
    assert "moved " in capsys.readouterr().out
    assert main(["status", NAME, "--store", there, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "interrupted"
    assert main(["copy", "absent", "--store", here, "--to", f"{tmp_path}/d"]) == 2
    assert not (tmp_path / "d").exists()


def test_a_request_that_crosses_the_move_is_told_to_be_repeated() -> None:
    source, target = finished(), MemoryStore()
    crossing = Hooked(source, countdown(0, lambda: copy(source, target) and None))
    with pytest.raises(ConfigError, match="repeat it there"):
        request(RunFolder(crossing, NAME), {"workers": 2}, None)


def test_a_run_that_begins_meanwhile_where_the_copy_goes_is_named() -> None:
    source, target = finished(), MemoryStore()
    stolen = Hooked(source, countdown(1, lambda: RunFolder(target, NAME).begin(replace(RUN, run_id="b" * 32)) and None))
    with pytest.raises(ConfigError, match="somebody else writes"):
        copy(stolen, target)
    assert moved(source).to == TO
    empty = MemoryStore()  # the other run was removed
    copy(source, empty)
    check_copied(source, empty)


def test_a_long_copy_says_how_far_it_is() -> None:
    stream, clock = io.StringIO(), FakeClock()
    tell = Counter(clock, stream)
    for done in range(4):
        tell(done * 256, 1024)
        clock.sleep(3)
    assert stream.getvalue() == "hiernas: 512 of 1024 objects copied\n"


# -- the record


def test_a_moved_record_is_as_strict_as_the_others() -> None:
    stamp = Stamp("c" * 32, 1.0, 0, 0)
    for to in ("", "s3://key:secret@bucket/runs", "s3://user@bucket"):
        with pytest.raises(ValueError, match="store") as told:
            Moved(0, to, None, stamp)
        assert "secret" not in str(told.value)
    for number, previous in ((0, "0" * 64), (1, None)):
        with pytest.raises(ValueError, match="previous"):
            Moved(number, TO, previous, stamp)
    record = Moved(3, TO, "0" * 64, stamp)
    assert decode(encode(record, history_key(3), RUN.run_id), history_key(3), RUN.run_id) == record
    with pytest.raises(ValueError, match=r"history/000003.json: .*kind"):
        decode(encode(record, history_key(3), RUN.run_id).replace(b'"kind":"moved"', b'"kind":"gone"'), history_key(3), RUN.run_id)


def test_nothing_may_follow_or_change_the_entry_that_ends_a_history() -> None:
    source = finished()
    before = contents(source)
    copy(source, MemoryStore())
    last = moved(source)
    stamp = replace(last.stamp, after=COUNT + 1)
    digest = RunFolder(source, NAME).digest(history_key(COUNT), last)
    for number, record in (
        (COUNT + 1, Moved(COUNT + 1, TO, digest, stamp)),
        (COUNT + 1, replace(state(source).history[-1], number=COUNT + 1, previous=digest, stamp=stamp)),
        (COUNT, replace(last, previous="0" * 64)),
        (COUNT, replace(last, number=COUNT - 1)),
        (COUNT, replace(last, stamp=replace(last.stamp, controller="f" * 32))),
    ):
        store = MemoryStore()
        key = history_key(number)
        for name, data in (before | contents(source)).items():
            if name != f"{NAME}/{key}":
                store.create(name, data)
        RunFolder(store, NAME).create(key, record)
        assert key in {finding.key for finding in errors(store)}
        if record.previous == digest or record.previous == "0" * 64:
            with pytest.raises(DamagedRun, match=f"{key}.*{'which the run was moved' if number > COUNT else 'follows'}"):
                RunFolder(store, NAME).load()


def test_an_address_is_the_same_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert {address(url) for url in ("runs", "./runs/", f"file://{tmp_path}/runs", f"{tmp_path}/x/../runs")} == {str(tmp_path / "runs")}
    assert {address(url) for url in ("s3://bucket/a/b", "s3://bucket/a/b/")} == {"s3://bucket/a/b"}
    assert {address(url) for url in ("s3://bucket", "s3://bucket/")} == {"s3://bucket"}
    for wrong in ("s3://[", "s3://key:secret@bucket/x"):
        with pytest.raises(ConfigError) as told:
            address(wrong)
        assert "secret" not in str(told.value)


# -- a new run from a good beginning


def begin(source: Store, outcomes: int, target: Store, to: str = TO) -> str:
    return begin_from(RunFolder(source, NAME), outcomes, target, to, lambda *_: None)


@pytest.mark.parametrize("outcomes", range(1, COUNT + 1))
def test_a_new_run_begins_with_the_first_outcomes(outcomes: int) -> None:
    source, target = MemoryStore(), MemoryStore()
    died(source, attempt_key(2, 0))
    work(controller(source, limits=SMALL))  # one attempt is ended, another succeeds
    before = contents(source)
    begin(source, outcomes, target)
    assert contents(source) == before
    assert verify(target, NAME) == []
    one, two = state(source), state(target)
    assert one.run.run_id != two.run.run_id
    assert [(outcome.stamp, outcome.gpu_seconds) for outcome in two.history] == [(outcome.stamp, outcome.gpu_seconds) for outcome in one.history[:outcomes]]
    assert [(outcome.candidate, outcome.fitness) for outcome in two.history] == [(outcome.candidate, outcome.fitness) for outcome in one.history[:outcomes]]
    assert [story.candidate for story in two.stories] == [story.candidate for story in one.stories[: len(two.stories)]]
    assert not any(story.running for story in two.stories)
    whole = contents(target)
    assert "nothing was left to do" in begin(source, outcomes, target)
    assert contents(target) == whole
    work(controller(target, owner="you@there", run=two.run, limits=SMALL))
    check_finished(target, COUNT)


def test_a_new_run_begins_before_the_damage_of_the_old_one() -> None:
    damaged, target = MemoryStore(), MemoryStore()
    for key, data in contents(finished()).items():
        damaged.create(key, data[:-9] if key.endswith(history_key(4)) else data)
    for outcomes in (5, 6):
        with pytest.raises(DamagedRun, match=history_key(4)):
            begin(damaged, outcomes, target)
    assert contents(target) == {}
    begin(damaged, 4, target)
    assert verify(target, NAME) == []


def altered(store: Store, key: str, change: Callable[[Any], Any]) -> MemoryStore:
    """A copy in which one record, still valid in itself, is another."""
    copied = MemoryStore()
    for name, data in contents(store).items():
        if name == f"{NAME}/{key}":
            data = encode(change(decode(data, key, RUN.run_id)), key, RUN.run_id)
        copied.create(name, data)
    return copied


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (history_key(1), lambda outcome: replace(outcome, held_seconds=99.0)),
        (evaluation_key(1, 0), lambda evaluation: replace(evaluation, total_seconds=99.0)),
        (candidate_key(1), lambda candidate: replace(candidate, seed=99)),
    ],
)
def test_no_new_run_begins_with_what_was_changed_by_hand(key: str, change: Callable[[Any], Any]) -> None:
    target = MemoryStore()
    with pytest.raises(DamagedRun, match=history_key(2) if "history" in key else key):
        begin(altered(finished(), key, change), 5, target)
    assert contents(target) == {}


def test_a_new_run_leaves_out_the_late_end_of_what_was_accepted() -> None:
    source, target = finished(), MemoryStore()
    one = state(source)
    stamp = one.history[-1].stamp
    RunFolder(source, NAME).create(end_key(0, 0), End(0, 0, EndReason.KILLED, "", None, None, 1.0, 0.0, (), stamp))
    assert errors(source) == []
    begin(source, 2, target)
    assert verify(target, NAME) == []


def test_a_new_run_needs_outcomes_that_are_there() -> None:
    source = finished()
    copy(source, MemoryStore())
    for outcomes in (-1, 0, COUNT + 1):
        with pytest.raises(ConfigError, match=f"--until {outcomes}"):
            begin(source, outcomes, MemoryStore())
    begin(source, COUNT, MemoryStore())  # also of a run that has moved away


def test_beginning_a_new_run_goes_on_after_a_crash_at_every_write() -> None:
    source = finished()
    for survives in range(100):
        target = MemoryStore()
        try:
            begin(source, 3, Hooked(target, countdown(survives, crash)))
            break
        except Crash:
            assert f"{NAME}/run.json" not in contents(target)
        begin(source, 3, target)
        assert verify(target, NAME) == []
    assert survives == len(contents(target)) > 10


def test_the_command_begins_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = str(tmp_path / "a"), str(tmp_path / "b")
    interrupted(DirectoryStore(tmp_path / "a"), 4)
    assert main(["copy", NAME, "--store", here, "--to", there, "--until", "2"]) == 0
    assert "with 2 outcomes" in capsys.readouterr().out
    assert main(["verify", NAME, "--store", there]) == 0
    assert main(["copy", NAME, "--store", here, "--to", there]) == 2
    assert "another run" in capsys.readouterr().err
