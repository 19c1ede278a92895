"""Training of one candidate (Liu et al. 2018, section 5.1; readings U10, U13, U14 of PAPERS).

The order of images and every crop and flip are drawn on the CPU as pure functions of (seed, repeat, epoch or step), so they
depend neither on the device nor on the network. No early stopping: fitness is the accuracy after the last step.
It must not choose precision, steps or batch by the device it finds (they are the recipe's), print, or look at test images.
"""

import math
import os
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from search.data import Images, SearchData
from search.graph import Graph
from search.network import Network, build
from search.recipe import Precision, Recipe
from search.records import FailureKind, Machine, Repeat
from search.stream import derive

Clock = Callable[[], float]
"""Seconds since any moment, never going back."""
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator", "can't allocate memory", "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED",
)  # fmt: skip
"""How libraries below torch's own allocator say it: as a plain RuntimeError with one of these in its text."""


class CandidateFailure(Exception):
    """A failure that is the candidate's own: out of memory, diverged, or over its time limit."""

    def __init__(self, failure: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """All repeats of one candidate."""

    fitness: float
    """Mean accuracy of the repeats."""
    repeats: tuple[Repeat, ...]
    peak_memory_bytes: int
    """Largest allocation on the device, data set included; 0 on the CPU, where torch does not count."""


def machine(device: torch.device, threads: int, precision: Precision) -> Machine:
    """On what an evaluation is made, failures included."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if device.type != "cuda":
        return Machine(f"cpu {platform.machine()}", threads, precision.value, versions)
    return Machine(torch.cuda.get_device_name(device), threads, precision.value, versions | {"cuda": str(torch.version.cuda)})


def configure(threads: int) -> None:
    """Set this process up so that the same candidate on the same machine and thread count has the same metrics, bit for bit."""
    torch.set_num_threads(threads)
    # cuBLAS is deterministic only with a workspace of fixed size, and torch refuses to run deterministically without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing here reads uninitialised memory; filling it costs time. (mypy: torch sets this attribute by a property.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def permutation(seed: int, repeat: int, epoch: int, images: int) -> torch.Tensor:
    """Order of one epoch (U14): int64, each of 0 … images-1 once."""
    generator = torch.Generator().manual_seed(derive(seed, "order", repeat, epoch))
    return torch.randperm(images, generator=generator)


def augmentation(seed: int, repeat: int, step: int, batch: int, offsets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One step's table: top left corners (int64, batch × 2: row, column, each below `offsets`) and flips (bool, batch)."""
    generator = torch.Generator().manual_seed(derive(seed, "augmentation", repeat, step))
    corners = torch.randint(offsets, (batch, 2), generator=generator)
    return corners, torch.rand(batch, generator=generator) < 0.5


def augment(images: torch.Tensor, recipe: Recipe, seed: int, repeat: int, step: int) -> torch.Tensor:
    """Padded, cropped and flipped as the step's table says: N × C × S × S to N × C × crop × crop (S where crop is None)."""
    crop = recipe.crop or images.shape[-1]
    if recipe.padding:
        images = functional.pad(images, [recipe.padding] * 4)
    offsets = images.shape[-1] - crop + 1
    if offsets == 1 and not recipe.flip:
        return images
    device = images.device
    corners, flips = augmentation(seed, repeat, step, len(images), offsets)
    rows, columns = (corners[:, axis, None] + torch.arange(crop) for axis in (0, 1))
    if recipe.flip:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    at = torch.arange(len(images), device=device)[:, None, None]
    picked = images[at, :, rows.to(device)[:, :, None], columns.to(device)[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # indexing around a slice puts the channels last


def curve_steps(recipe: Recipe) -> tuple[int, ...]:
    """Numbers of steps after which the learning curve has a point: evenly spaced, the last step among them."""
    return tuple(sorted({recipe.steps * point // recipe.curve_points for point in range(1, recipe.curve_points + 1)} - {0}))


def _layout(device: torch.device) -> torch.memory_format:
    """Channels last on a CPU, where it was measured to be faster (search-sized network: 72 to 46 ms a step on one core); torch's
    default on CUDA, where it was not measured."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def _evaluate(network: Network, data: Images, batch: int) -> tuple[float, float]:
    """(accuracy, mean loss) on full images, with the batch norms' running statistics."""
    network.eval()
    layout = _layout(data.labels.device)
    right = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    with torch.inference_mode():
        for images, labels in zip(torch.split(data.images, batch), torch.split(data.labels, batch), strict=True):
            logits = network(images.contiguous(memory_format=layout))
            loss += functional.cross_entropy(logits, labels, reduction="sum")
            right += (logits.argmax(1) == labels).sum()
    return int(right) / len(data.labels), float(loss) / len(data.labels)


@dataclass(frozen=True, slots=True)
class _Training:
    """What the repeats of one candidate share."""

    graph: Graph
    recipe: Recipe
    data: SearchData
    seed: int
    device: torch.device
    clock: Clock
    deadline: float

    def check_time(self) -> None:
        if self.clock() > self.deadline:
            raise CandidateFailure(FailureKind.TIME_LIMIT, f"took longer than its limit of {self.recipe.time_limit_seconds:g} s")

    def repeat(self, repeat: int) -> Repeat:
        """One independent training and its evaluation."""
        began = self.clock()
        network = build(self.graph, self.seed, repeat).to(self.device).to(memory_format=_layout(self.device))
        curve = self._fit(network, repeat)
        trained = self.clock()  # the device has finished: the last loss was read
        self.check_time()
        accuracy, loss = _evaluate(network, self.data.validation, self.recipe.batch)
        if not math.isfinite(loss):
            raise CandidateFailure(FailureKind.DIVERGED, f"validation loss of repeat {repeat} is {loss}")
        return Repeat(accuracy, loss, trained - began, self.clock() - trained, curve)

    def _fit(self, network: Network, repeat: int) -> tuple[tuple[int, float], ...]:
        recipe, train = self.recipe, self.data.train
        optimiser = torch.optim.SGD(  # U13: no Nesterov, weight decay on all parameters
            network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
        batches = len(train.labels) // recipe.batch  # the last partial batch of an epoch is dropped (U14)
        points = curve_steps(recipe)
        layout = _layout(self.device)
        curve: list[tuple[int, float]] = []
        since, total = 0, torch.zeros((), device=self.device)
        network.train()
        for step in range(recipe.steps):
            self.check_time()
            epoch, place = divmod(step, batches)
            if place == 0:
                order = permutation(self.seed, repeat, epoch, len(train.labels)).to(self.device)
            chosen = order[place * recipe.batch : (place + 1) * recipe.batch]
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            images = augment(train.images[chosen], recipe, self.seed, repeat, step)
            loss = functional.cross_entropy(network(images.contiguous(memory_format=layout)), train.labels[chosen])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.detach()
            if step + 1 in points or step + 1 == recipe.steps:  # only here is the device waited for
                mean = float(total) / (step + 1 - since)
                if not math.isfinite(mean):
                    raise CandidateFailure(FailureKind.DIVERGED, f"training loss of repeat {repeat} is {mean} by step {step + 1}")
                if recipe.curve_points:
                    curve.append((step + 1, mean))
                since = step + 1
                total.zero_()
        return tuple(curve)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def _check(graph: Graph, recipe: Recipe, data: SearchData) -> None:
    """ValueError when the recipe and the network do not fit the data: the config's fault, so not a CandidateFailure."""
    count, channels, _, size = data.train.images.shape
    if recipe.batch > count:
        raise ValueError(f"recipe {recipe.name!r}: batch is {recipe.batch}, but the training split has {count} images")
    if recipe.crop is not None and recipe.crop > size + 2 * recipe.padding:
        raise ValueError(
            f"recipe {recipe.name!r}: crop is {recipe.crop}, but images of {size} with padding {recipe.padding} are {size + 2 * recipe.padding} wide"
        )
    if graph.operations[0].width != channels:
        raise ValueError(f"the network takes {graph.operations[0].width} channels, the images have {channels}")


def train(graph: Graph, recipe: Recipe, data: SearchData, seed: int, device: torch.device, threads: int, clock: Clock = time.monotonic) -> TrainingResult:
    """Train `recipe.repeats` times on `device`, where the data lies, and evaluate each on the validation images.

    CandidateFailure: the candidate's own failure. ValueError: recipe and data do not fit. Same arguments on the same machine:
    the same metrics, bit for bit; for that it configures torch for the whole process.
    """
    _check(graph, recipe, data)
    configure(threads)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    limit = math.inf if recipe.time_limit_seconds is None else recipe.time_limit_seconds
    training = _Training(graph, recipe, data, seed, device, clock, clock() + limit)
    try:
        repeats = tuple(training.repeat(repeat) for repeat in range(recipe.repeats))
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # else the error keeps the network's tensors alive
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise CandidateFailure(FailureKind.OUT_OF_MEMORY, text) from error
    return TrainingResult(
        fitness=sum(one.accuracy for one in repeats) / len(repeats),
        repeats=repeats,
        peak_memory_bytes=torch.cuda.max_memory_allocated(device) if cuda else 0,
    )
