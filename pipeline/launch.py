"""`hiernas run`: from a config to a controller at work on this machine."""

import contextlib
import fcntl
import getpass
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import psutil

from pipeline import transfer, trouble
from pipeline.clock import SystemClock
from pipeline.config import Config, differences, parse_config
from pipeline.controller import Controller, Place
from pipeline.directory import DirectoryStore, explain
from pipeline.errors import ConfigError, HiernasError, Overtaken, Unavailable
from pipeline.executor import Executor
from pipeline.inline import InlineExecutor
from pipeline.labels import namespace_of
from pipeline.plan import View
from pipeline.processes import ProcessExecutor
from pipeline.progress import Progress
from pipeline.requests import request
from pipeline.run import RunFolder, SlotTaken, controller_key
from pipeline.status import word
from pipeline.store import Store, open_store
from pipeline.worker import TRAINER
from search.limits import Limits
from search.records import Claim, Release, ReleaseReason, Run, Stamp

if TYPE_CHECKING:
    from pipeline.metrics import Exporter

log = logging.getLogger("hiernas.launch")
PACE_SECONDS = {"processes": 0.5, "inline": 0.5, "kubernetes": 2.0}
"""Longest wait between two rounds; a local worker that ends wakes the controller at once."""
IDLE_SECONDS = 900.0
"""How long a controller in a pod waits where a restart would hardly help, before it looks again all the same. Meanwhile its pod is not ready."""
LINGER_SECONDS = 45.0
"""How long the last numbers stay up in a pod: more than a scrape interval."""


def place() -> Place:
    """This process as a controller: the same user on the same host takes over from itself silently."""
    host = socket.gethostname()
    born = psutil.Process().create_time()
    return Place(secrets.token_hex(16), f"{getpass.getuser()}@{host}", f"{host}/{os.getpid()}/{born:.3f}")


def begin(config: Config, fresh: Run, folder: RunFolder, before: Limits | None = None) -> None:
    """Create the run, or check that the one there is the same and take over changed limits as a request.

    `before`: the limits that were configured last; None: those of the last claim.
    """
    there = folder.begin(fresh)
    changed = differences(there, fresh)
    if changed:
        raise ConfigError(
            f"run {config.run!r} exists and searches for something else:\n  " + "\n  ".join(changed)
            + "\nGive the new search another name (field 'run'), or restore the config"
        )  # fmt: skip
    state = folder.load()
    if state.moved is not None:
        raise ConfigError(folder.elsewhere(state.moved))
    before = before or (state.last_claim.limits if state.last_claim is not None else None)
    if before is not None and (wanted := before.differences(config.limits)):
        # Only what was edited since the last start: a `hiernas set` in between stays in force.
        request(folder, wanted, None)


@contextlib.contextmanager
def alone(store: object, name: str, take_over: bool) -> Iterator[None]:
    """Keep a second process of this machine waiting. A courtesy only: safety rests on the claims in `controllers/`."""
    if not isinstance(store, DirectoryStore) or take_over:
        yield
        return
    folder = store.root / ".locks"
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / name).open("a")
    except OSError as error:
        raise explain(folder / name, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"hiernas: another process of this machine works on run {name!r}; waiting for it (Ctrl-C to give up, --take-over to replace it)",
                file=sys.stderr,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("this file system knows no locks, so a second process would not wait run=%s error=%s", name, error.strerror)
        yield


def executor_for(config: Config, run: Run, store_url: str, trainer: str = TRAINER) -> Executor:
    """Where the config's attempts run."""
    if config.executor.kind == "kubernetes":
        assert config.cluster is not None
        made: Executor = _cluster_module().executor(run, store_url, config.cluster, SystemClock())
        return made
    data_root = str(Path(config.data_root).absolute())
    if config.executor.kind == "inline":
        return InlineExecutor(open_store(store_url), data_root, trainer)
    return ProcessExecutor(store_url, data_root, trainer)


def _cluster_module() -> ModuleType:
    """pipeline.deploy; ConfigError where the Kubernetes client is not installed."""
    try:
        from pipeline import deploy
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs the package {error.name!r}; install hiernas[cluster]") from error
    return deploy


def put_data(config: Config, store: Store, url: str) -> None:
    """Bring the prepared data set to where pods fetch it."""
    transfer.put(transfer.files_of(store, url), config.dataset(), Path(config.data_root) / config.data)


def launch(config: Config, store_url: str, take_over: bool, lock: bool = True, trainer: str = TRAINER, metrics_port: int | None = None) -> ReleaseReason | None:
    """Run or continue the search in the foreground; returns why it ended."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    fresh = config.what(secrets.token_hex(16))  # before the store is made: a config that is refused leaves no trace
    store = open_store(store_url)
    folder = RunFolder(store, config.run)
    with alone(store, config.run, take_over or not lock):
        begin(config, fresh, folder)
        if config.executor.kind == "kubernetes":
            put_data(config, store, store_url)
        return _control(config, folder, store_url, place(), take_over, trainer, metrics_port)


def launch_submitted(config: Config, store_url: str, metrics_port: int) -> ReleaseReason | None:
    """The controller in its pod: `hiernas submit` has begun the run and asked for its limits. What a restart can't cure is reported, then waited out."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    from pipeline.metrics import CountedStore, Exporter

    deploy = _cluster_module()
    assert config.cluster is not None
    tell = deploy.Reporter(config.cluster, config.run)
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    exporter = None
    try:
        exporter = Exporter(config.run)
        exporter.serve(metrics_port)
        exporter.store = counted = CountedStore(open_store(store_url))
        where = deploy.place(secrets.token_hex(16), config.run, config.cluster) or place()
        reason = _control(config, RunFolder(counted, config.run), store_url, where, False, TRAINER, None, exporter, tell)
        if reason is not ReleaseReason.INTERRUPTED:
            stop.wait(LINGER_SECONDS)
        return reason
    except HiernasError as error:
        if isinstance(error, Unavailable):
            raise  # a restart may help
        log.error("stopped, and a restart would hardly help: %s", error)
        tell(type(error).__name__, f"{error}. It looks again in {IDLE_SECONDS / 60:.0f} minutes, and at once when the run is submitted again")
        if exporter is not None:
            exporter.leave()
        if not stop.wait(IDLE_SECONDS):
            raise  # a person may have mended it meanwhile: look again
        return ReleaseReason.INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if exporter is not None:
            exporter.close()


def _control(
    config: Config,
    folder: RunFolder,
    store_url: str,
    where: Place,
    take_over: bool,
    trainer: str,
    metrics_port: int | None,
    exporter: "Exporter | None" = None,
    tell: Callable[[str, str], None] = lambda _, __: None,
) -> ReleaseReason | None:
    executor = executor_for(config, folder.run, store_url, trainer)
    controller = Controller(folder, executor, SystemClock(), where, config.limits, config.resources(), take_over, tell)
    own = None
    if exporter is None and metrics_port is not None:
        from pipeline.metrics import Exporter

        exporter = own = Exporter(config.run)
        exporter.serve(metrics_port, "127.0.0.1")
    try:
        with _interruptible(controller), Progress() as progress:

            def observe(controller: Controller, view: View) -> None:
                progress(controller, view)
                if exporter is not None:
                    exporter(controller, view)

            reason = controller.work(observe, PACE_SECONDS[config.executor.kind])
            progress.finish(controller.state)
    finally:
        executor.close()
        if own is not None:
            own.close()
    print(closing(controller, reason), file=sys.stderr)
    return reason


def submit(config: Config, text: str, store_url: str, take_over: bool = False) -> str:
    """Begin the run, or ask for its changed limits, and make its objects in the cluster; returns in a few words what was done."""
    deploy = _cluster_module()
    assert config.cluster is not None
    fresh = config.what(secrets.token_hex(16))
    store = open_store(store_url)
    folder = RunFolder(store, config.run)
    transfer.files_of(store, store_url)
    api = deploy.Api()
    if not take_over:
        _check_charge(folder, config.cluster.namespace)
    before = deploy.submitted_config(api, config.run, config.cluster)
    begin(config, fresh, folder, None if before is None else parse_config(before, "the config in the cluster").limits)
    if take_over:
        _hand_over(folder)
    put_data(config, store, store_url)
    state = folder.load()
    # One that has released, or waits because another was in charge, claims only once it is started again.
    again = bool(state.controllers) and (state.charge is None or namespace_of(state.charge.owner) != config.cluster.namespace)
    done: str = deploy.apply(api, folder.run, store_url, config.cluster, text, again)
    return done


def _check_charge(folder: RunFolder, namespace: str) -> None:
    """Overtaken while somebody else than a controller in this namespace is in charge: nothing is asked of a run that is not handed over."""
    last = folder.load().charge if folder.exists() else None
    if last is not None and namespace_of(last.owner) != namespace:
        raise Overtaken(
            f"run {folder.name!r} is in the charge of {last.owner} (since {last.at:.0f}). End that controller first (Ctrl-C, or "
            f"`hiernas stop {folder.name}`); if it is gone for good, give --take-over"
        )


def _hand_over(folder: RunFolder) -> None:
    """End the charge of whoever has it, so that a controller in the cluster may claim."""
    state = folder.load()
    last = state.charge
    if last is None:
        return
    me, number, now = place(), len(state.controllers), SystemClock().now()
    claim = Claim(me.claim_id(number), me.owner, me.incarnation, last.controller, last.executor, last.limits, now)
    release = Release(ReleaseReason.INTERRUPTED, Stamp(claim.controller, now, len(state.history), len(state.requests)))
    try:
        folder.create(controller_key(number), claim)
        folder.create(controller_key(number + 1), release)
    except SlotTaken as taken:
        raise Overtaken(f"run {folder.name!r} was taken over by another controller meanwhile ({taken.key}); see `hiernas status {folder.name}`") from taken


def described(config: Config, text: str, store_url: str) -> list[dict[str, Any]]:
    """What `submit` would create, and the Job of a first worker as an example; touches neither store nor cluster."""
    deploy = _cluster_module()
    assert config.cluster is not None
    found: list[dict[str, Any]] = deploy.described(config.what("0" * 32), store_url, config.cluster, text, config.resources())
    return found


def closing(controller: Controller, reason: ReleaseReason | None) -> str:
    """What a person should know when the command returns."""
    name = controller.folder.name
    again = "`hiernas submit`" if controller.executor.survives else "`hiernas run`"
    return {
        "finished": f"run {name!r} is finished; `hiernas report {name} --out DIR` draws it, a larger limits.max_evaluations extends it",
        "stopped": f"run {name!r} is stopped and stays so; `hiernas resume {name}`, then the same {again}, continues it",
        "halted": f"run {name!r} was halted: {trouble.halted_by(controller.state)}",
        "interrupted": f"run {name!r} was interrupted, nothing is lost; the same command continues it"
        + ("; its jobs go on in the cluster" if controller.executor.survives else ""),
    }.get(word(controller.state) if reason is None else reason.value, f"run {name!r}: nothing to do")


@contextlib.contextmanager
def _interruptible(controller: Controller) -> Iterator[None]:
    """Ctrl-C once drains, twice stops now; SIGTERM stops now. All of them can be resumed."""

    def interrupt(number: int, _: FrameType | None) -> None:
        controller.interrupts += 1 if number == signal.SIGINT else 2
        if controller.executor.survives:
            os.write(2, b"\nhiernas: this controller ends; jobs go on\n")
            return
        told = ("waiting for what runs to finish; Ctrl-C again to end it now", "ending what runs now")[controller.interrupts > 1]
        os.write(2, f"\nhiernas: {told}\n".encode())

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_charge(folder: RunFolder) -> bool:
    """Whether somebody has claimed the run and not released it (it may have died since)."""
    return folder.load().charge is not None
