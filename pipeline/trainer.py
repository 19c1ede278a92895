"""What a worker does with a task: read the data, train, say what came of it. The only module of the pipeline that reaches torch."""

import time
from pathlib import Path

import torch

from pipeline.errors import MachineFault
from pipeline.worker import Task
from search.cost import cost
from search.data import SearchData
from search.dataset import DataError
from search.records import Evaluation, Failure, FailureKind, Machine, Metrics, Repeat
from search.training import CandidateFailure, train


def train(task: Task) -> Evaluation: ...
