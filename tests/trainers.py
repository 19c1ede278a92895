"""Trainers without torch, named by tests as 'trainers:instant' and 'trainers:slow': only the candidate's seed decides."""

import time

from pipeline.worker import Task
from search.records import Evaluation, Machine, Metrics, Repeat
from search.stream import Stream


def instant(task: Task) -> Evaluation:
    """See pipeline.worker.Trainer."""
    accuracies = [(task.candidate.seed >> shift) % 1000 / 1000 for shift in (0, 10)]
    repeats = tuple(Repeat(accuracy, 1 - accuracy, 1.0, 0.5, ((10, 0.5),)) for accuracy in accuracies)
    machine = Machine("none", task.threads, "float32", {})
    return Metrics(
        task.candidate.index, task.attempt, sum(accuracies) / 2, repeats, 1, 1, task.graph.digest, 1, task.run.data.digest, 2.0, machine,
    )  # fmt: skip


def slow(task: Task) -> Evaluation:
    """The same after 0.05 to 0.25 s: long enough to be killed in."""
    time.sleep(0.05 + Stream(task.candidate.seed, "slow").below(100) / 500)
    return instant(task)
