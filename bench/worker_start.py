"""How long a local worker takes from its start until its trainer is called, against a fresh process that imports torch.

    .venv/bin/python bench/worker_start.py

Workers are forked from a server that has imported torch (pipeline.processes). The two are measured in turns, so that a slow
moment of the machine hits both. The worker's time is from `ProcessExecutor.start` to the first line of the trainer: fork, opening
the store, reading the run, candidate and attempt, assembling the network. The very first start, which starts the server, is
given apart. Writes results/worker_start.json.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

from pipeline.config import parse_recipe
from pipeline.executor import JobSpec, JobStatus, job_name
from pipeline.processes import ProcessExecutor
from pipeline.run import RunFolder, attempt_key, candidate_key
from pipeline.store import open_store
from pipeline.worker import Task
from search.evolution import Evolution, Past
from search.graph import Model
from search.records import ALGORITHM, Attempt, Constraints, DataReference, Evaluation, Failure, FailureKind, Resources, Run, Stamp, Why
from search.space import SPACES
from search.state import derive_candidate

if __name__ not in ("__main__", "__mp_main__"):
    import pipeline.trainer  # noqa: F401  # in the fork server, as where it is the trainer itself

REPEATS = 15
BEGAN = "began"


def begun(task: Task) -> Evaluation:
    """A trainer that leaves word when it was called."""
    (Path(task.data_root) / f"{BEGAN}-{task.candidate.index}").write_text(repr(time.monotonic()))
    return Failure(task.candidate.index, task.attempt, FailureKind.TIME_LIMIT, "not trained", 0.0, None)


def begin(folder: RunFolder, count: int) -> None:
    """A run with so many candidates, each with an attempt to be run."""
    recipe = parse_recipe("digits-small", "recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, 1, 8, 10)
    data, space = DataReference("none", "0" * 64), SPACES["liu2018-hierarchical"]
    run = folder.begin(Run(folder.name, "0" * 32, ALGORITHM, 1, space, Evolution(), recipe, model, data, Constraints()))
    past = Past()
    for index in range(count):
        candidate = derive_candidate(run, past, index)
        assert candidate is not None
        folder.create(candidate_key(index), candidate)
        stamp = Stamp("0" * 32, 0.0, 0, 0)
        folder.create(attempt_key(index, 0), Attempt(index, 0, Why.FIRST, "processes", job_name(run.name, index, 0), Resources(), (), 0, stamp))


def worker_seconds(executor: ProcessExecutor, root: Path, index: int) -> float:
    """Start a worker and wait for its end; seconds until its trainer was called."""
    began = time.monotonic()
    executor.start(JobSpec(job_name("bench", index, 0), "bench", index, 0, Resources(), ""))
    while (job := executor.jobs()[-1]).status is not JobStatus.ENDED:
        executor.wait(1.0)
    if job.exit_code != 0:
        raise SystemExit(f"the worker ended with {job.exit_code}:\n" + "\n".join(job.log))
    executor.delete(job.name)
    return float((root / f"{BEGAN}-{index}").read_text()) - began


def torch_seconds() -> float:
    """A fresh interpreter that imports torch."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.monotonic() - began


def main() -> None:
    """Measure and write."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # the fork server imports this file as the trainer's module
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        begin(RunFolder(open_store(str(root)), "bench"), REPEATS + 1)
        executor = ProcessExecutor(str(root), str(root), "worker_start:begun")
        try:
            first = worker_seconds(executor, root, 0)
            torch_seconds()  # its files are in memory from now on, as the server's are
            pairs = [(worker_seconds(executor, root, index), torch_seconds()) for index in range(1, REPEATS + 1)]
        finally:
            executor.close()
    workers, fresh = zip(*pairs, strict=True)
    figures = {
        "first_worker_with_its_server_s": round(first, 3),
        "worker_s": record.spread(workers),
        "python_import_torch_s": record.spread(fresh),
        "import_to_worker": record.spread([slow / fast for fast, slow in pairs], 1),
    }
    record.write("worker_start", {"figures": figures}, ("torch",))


if __name__ == "__main__":
    main()
