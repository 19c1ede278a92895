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

_MACHINE_WORDS = (
    "uncorrectable ECC error",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "CUDA driver initialization failed",
    "system not yet initialized",
    "GPU has fallen off the bus",
    "hardware stack error",
    "unspecified launch failure",
    "device kernel image is invalid",
    "no kernel image is available for execution on the device",
)
"""In messages of CUDA, where the machine is at fault."""


def train(task: Task) -> Evaluation:
    """See pipeline.worker.Trainer."""
    run, candidate = task.run, task.candidate
    device = _device(task.gpus)
    on = machine(device, task.threads, run.recipe.precision)
    try:
        data = open_search(Path(task.data_root) / run.data.name, run.data.digest, device)
        result = train_network(task.graph, run.recipe, data, candidate.seed, device, task.threads)
    except DataError as error:
        raise MachineFault(str(error)) from error
    except CandidateFailure as error:
        return Failure(candidate.index, task.attempt, error.failure, str(error), time.monotonic() - task.started, on)
    except RuntimeError as error:
        if _of_the_machine(str(error)):
            raise MachineFault(f"the GPU or its driver failed: {str(error).splitlines()[0]}") from error
        raise
    found = cost(task.graph, run.recipe.batch)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = result.peak_memory_bytes or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Metrics(
        candidate.index, task.attempt, result.fitness, result.repeats, found.parameters, found.multiply_adds, task.graph.digest,
        peak, run.data.digest, time.monotonic() - task.started, on,
    )  # fmt: skip


def _device(gpus: int) -> torch.device:
    """A GPU where there is one. MachineFault where the attempt was given one that is of no use: never hours on a processor instead."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if gpus:
        raise MachineFault(
            f"this attempt was given {gpus} GPU(s), but torch {torch.__version__} (CUDA {torch.version.cuda}) can use none: is the node's driver "
            "new enough for that CUDA, and the GPU not older than it supports? See docs/images.md for another torch"
        )
    return torch.device("cpu")


def _of_the_machine(message: str) -> bool:
    """Whether a failure of the GPU is its own or its driver's, and no candidate's nor ours."""
    return any(words in message for words in _MACHINE_WORDS)
