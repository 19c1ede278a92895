"""Trainers without torch, named by tests as 'trainers:instant': only the candidate's seed decides.

`Path(task.data_root)` is the test's own folder: there a trainer leaves word of what it did, and looks for a sign to go on.
"""

import errno
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from pipeline.errors import MachineFault
from pipeline.worker import Task
from search.records import Evaluation, Machine, Metrics, Repeat
from search.stream import Stream

GO = "go"
"""File that lets `held` trainers finish."""


def instant(task: Task) -> Evaluation:
    """See pipeline.worker.Trainer."""
    return _evaluation(task, {})


def _evaluation(task: Task, versions: dict[str, str]) -> Metrics:
    accuracies = [(task.candidate.seed >> shift) % 1000 / 1000 for shift in (0, 10)]
    repeats = tuple(Repeat(accuracy, 1 - accuracy, 1.0, 0.5, ((10, 0.5),)) for accuracy in accuracies)
    machine = Machine("none", task.threads, "float32", versions)
    return Metrics(
        task.candidate.index, task.attempt, sum(accuracies) / 2, repeats, 1, 1, task.graph.digest, 1, task.run.data.digest, 2.0, machine,
    )  # fmt: skip


def slow(task: Task) -> Evaluation:
    """The same after 0.05 to 0.25 s: long enough to be killed in."""
    time.sleep(0.05 + Stream(task.candidate.seed, "slow").below(100) / 500)
    return instant(task)


def began(root: Path, candidate: int, attempt: int) -> Path:
    """File whose lines are the processes that began to train an attempt."""
    return root / f"began-{candidate}-{attempt}"


def counted(task: Task) -> Evaluation:
    """Leaves word that it began."""
    with began(Path(task.data_root), task.candidate.index, task.attempt).open("a") as file:
        file.write(f"{os.getpid()}\n")
    return instant(task)


def held(task: Task) -> Evaluation:
    """Leaves word that it began, and goes on when it is let, or after longer than any test waits."""
    evaluation = counted(task)
    forgotten = time.monotonic() + 300
    while not (Path(task.data_root) / GO).exists() and time.monotonic() < forgotten:
        time.sleep(0.01)
    return evaluation


def raises(task: Task) -> Evaluation:
    """A bug."""
    raise ZeroDivisionError("a bug on purpose")


def machine_fault(task: Task) -> Evaluation:
    """A machine that is not well: it leaves word that it began, but no evaluation."""
    counted(task)
    raise MachineFault("an error of the driver, on purpose")


def full_disk(task: Task) -> Evaluation:
    """A disk that is full, as the system says it."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(Path(task.data_root) / "cache"))


def cramped(task: Task) -> Evaluation:
    """The same where not even the log can be written."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.stdout.write("this cannot be flushed")
    return full_disk(task)


def forgetful(task: Task) -> Evaluation:
    """Leaves a thread behind that never ends."""
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
    return instant(task)


def greedy(task: Task) -> Evaluation:
    """Takes 400 MB."""
    taken = b"x" * 400_000_000
    held(task)
    return _evaluation(task, {"taken": str(len(taken))})


def chatty(task: Task) -> Evaluation:
    """Says much, then dies without a word."""
    for number in range(1000):
        print(f"line {number}", flush=True)
    os._exit(7)


def parental(task: Task) -> Evaluation:
    """Has a child, which leaves word too; ends once it is let, the child does not."""
    child = subprocess.Popen(["sleep", "600"])
    (Path(task.data_root) / "child").write_text(str(child.pid))
    return held(task)


def telling(task: Task) -> Evaluation:
    """Tells of its process."""
    own = os.getsid(0) == os.getpgid(0) == os.getpid() != os.getppid()
    return _evaluation(task, {"session": "own" if own else "shared", "process": str(os.getpid())})
