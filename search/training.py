"""Training of one candidate (Liu et al. 2018, section 5.1; readings U10, U13, U14 of PAPERS).

The order of images and every crop and flip are drawn on the CPU as pure functions of (seed, repeat, epoch or step), so they
depend neither on the device nor on the network. No early stopping: fitness is the accuracy after the last step.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from search.data import Images, SearchData
from search.graph import Graph
from search.network import Network, build
from search.recipe import Recipe
from search.stream import derive

EVALUATION_BATCH = 512


class CandidateFailure(Exception):
    """A failure that is the candidate's own: `failure` is 'out_of_memory', 'diverged' or 'time_limit'."""

    def __init__(self, failure: str, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True, slots=True)
class RepeatResult:
    """One of the independent trainings."""

    accuracy: float
    loss: float
    train_seconds: float
    evaluate_seconds: float
    curve: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """All repeats; `fitness` is their mean accuracy."""

    fitness: float
    repeats: tuple[RepeatResult, ...]
    peak_memory_bytes: int
    device: str


def configure(threads: int) -> None:
    """Same candidate, same machine, same threads: the same metrics bit for bit."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def permutation(seed: int, repeat: int, epoch: int, images: int) -> torch.Tensor:
    """A new order each epoch (U14): int64, every image once."""
    generator = torch.Generator().manual_seed(derive(seed, "order", repeat, epoch))
    return torch.randperm(images, generator=generator)


def augmentation(seed: int, repeat: int, step: int, batch: int, offsets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crop corners (batch × 2, each below `offsets`) and flips (batch, bool) of one step."""
    generator = torch.Generator().manual_seed(derive(seed, "augmentation", repeat, step))
    corners = torch.randint(offsets, (batch, 2), generator=generator)
    return corners, torch.rand(batch, generator=generator) < 0.5


def _augment(images: torch.Tensor, recipe: Recipe, seed: int, repeat: int, step: int) -> torch.Tensor:
    """Cropped and flipped batch: N × C × crop × crop."""
    size = images.shape[-1]
    crop = recipe.crop or size
    if recipe.padding:
        images = functional.pad(images, [recipe.padding] * 4)
    corners, flips = augmentation(seed, repeat, step, len(images), images.shape[-1] - crop + 1)
    if images.shape[-1] != crop:
        span = torch.arange(crop)
        rows = (corners[:, :1] + span).to(images.device)
        columns = (corners[:, 1:] + span).to(images.device)
        at = torch.arange(len(images), device=images.device)
        images = images[at[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if recipe.flip:
        images = torch.where(flips.to(images.device)[:, None, None, None], images.flip(-1), images)
    return images


def _evaluate(network: Network, data: Images) -> tuple[float, float]:
    """(accuracy, mean loss) on full images."""
    network.eval()
    right = loss = 0.0
    with torch.inference_mode():
        for images, labels in zip(data.images.split(EVALUATION_BATCH), data.labels.split(EVALUATION_BATCH), strict=True):
            logits = network(images)
            loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
            right += float((logits.argmax(1) == labels).sum())
    return right / len(data.labels), loss / len(data.labels)


def _repeat(graph: Graph, recipe: Recipe, data: SearchData, seed: int, repeat: int, device: torch.device, check: Callable[[], None], clock: Callable[[], float]) -> RepeatResult:
    began = clock()
    network = build(graph, seed, repeat).to(device)
    optimiser = torch.optim.SGD(network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    count = len(data.train.labels)
    batches = count // recipe.batch  # the last partial batch is dropped (U14)
    every = max(1, recipe.steps // recipe.curve_points) if recipe.curve_points else recipe.steps
    curve: list[tuple[int, float]] = []
    since = torch.zeros((), device=device)
    network.train()
    for step in range(recipe.steps):
        check()
        epoch, place = divmod(step, batches)
        if place == 0:
            order = permutation(seed, repeat, epoch, count).to(device)
        chosen = order[place * recipe.batch : (place + 1) * recipe.batch]
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        images = _augment(data.train.images[chosen], recipe, seed, repeat, step)
        loss = functional.cross_entropy(network(images), data.train.labels[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        since += loss.detach()
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            mean = float(since) / (step + 1 - (curve[-1][0] if curve else 0))
            if not math.isfinite(mean):
                raise CandidateFailure("diverged", f"training loss is {mean} before step {step + 1}")
            curve.append((step + 1, mean))
            since.zero_()
    trained = clock()
    accuracy, validation_loss = _evaluate(network, data.validation)
    if not math.isfinite(validation_loss):
        raise CandidateFailure("diverged", f"validation loss is {validation_loss}")
    return RepeatResult(accuracy, validation_loss, trained - began, clock() - trained, tuple(curve))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error) or "DefaultCPUAllocator" in str(error)


def train(graph: Graph, recipe: Recipe, data: SearchData, seed: int, device: torch.device, threads: int, clock: Callable[[], float] = time.monotonic) -> TrainingResult:
    """Train `recipe.repeats` times and evaluate; CandidateFailure when that is the candidate's own failure.

    ValueError when the recipe does not fit the data (batch or crop larger than there is).
    """
    if recipe.batch > len(data.train.labels):
        raise ValueError(f"recipe.batch is {recipe.batch}, the training split has {len(data.train.labels)} images")
    room = data.train.images.shape[-1] + 2 * recipe.padding
    if recipe.crop is not None and recipe.crop > room:
        raise ValueError(f"recipe.crop is {recipe.crop}, the padded images are {room} wide")
    configure(threads)
    began = clock()

    def check() -> None:
        if recipe.time_limit_seconds is not None and clock() - began > recipe.time_limit_seconds:
            raise CandidateFailure("time_limit", f"took longer than {recipe.time_limit_seconds:g} s")

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        repeats = tuple(_repeat(graph, recipe, data, seed, repeat, device, check, clock) for repeat in range(recipe.repeats))
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise CandidateFailure("out_of_memory", str(error).splitlines()[0]) from error
    fitness = sum(one.accuracy for one in repeats) / len(repeats)
    peak = torch.cuda.max_memory_allocated(device) if cuda else 0
    return TrainingResult(fitness, repeats, peak, torch.cuda.get_device_name(device) if cuda else "cpu")
