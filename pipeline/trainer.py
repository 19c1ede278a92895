"""What a worker does with a task: read the data, train, say what came of it. The only module of the pipeline that reaches torch."""

import resource
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # torch imports it (2 s) when the first optimiser is made; here the fork server does, once for all workers

from pipeline.errors import MachineFault
from pipeline.worker import Task
from search.cost import cost
from search.data import open_search
from search.dataset import DataError
from search.records import Evaluation, Failure, Metrics
from search.training import CandidateFailure, machine
from search.training import train as train_network


def train(task: Task) -> Evaluation:
    """See pipeline.worker.Trainer."""
    run, candidate = task.run, task.candidate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on = machine(device, task.threads, run.recipe.precision)
    try:
        data = open_search(Path(task.data_root) / run.data.name, run.data.digest, device)
        result = train_network(task.graph, run.recipe, data, candidate.seed, device, task.threads)
    except DataError as error:
        raise MachineFault(str(error)) from error
    except CandidateFailure as error:
        return Failure(candidate.index, task.attempt, error.failure, str(error), time.monotonic() - task.started, on)
    found = cost(task.graph, run.recipe.batch)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = result.peak_memory_bytes or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Metrics(
        candidate.index, task.attempt, result.fitness, result.repeats, found.parameters, found.multiply_adds, task.graph.digest,
        peak, run.data.digest, time.monotonic() - task.started, on,
    )  # fmt: skip
