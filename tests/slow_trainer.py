"""A trainer without torch, for tests of real processes: it takes a while and finds a fitness that the seed decides."""

import time

from pipeline.worker import Task
from search.records import Evaluation, Machine, Metrics, Repeat
from search.stream import Stream


def train(task: Task) -> Evaluation:
    """See pipeline.worker.Trainer."""
    draw = Stream(task.candidate.seed, "slow")
    time.sleep(0.05 + draw.below(100) / 500)
    accuracy = draw.below(1000) / 1000
    machine = Machine("none", task.threads, "float32", {})
    return Metrics(
        task.candidate.index,
        task.attempt,
        accuracy,
        (Repeat(accuracy, 0.5, 0.1, 0.1, ()),),
        1,
        1,
        task.graph.digest,
        1,
        task.run.data.digest,
        time.monotonic() - task.started,
        machine,
    )
