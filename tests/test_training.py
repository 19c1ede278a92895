"""Training: determinism, its tables as pure functions, its failures, and what the fitness is."""

import dataclasses
import gc
import math
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published import random_genotype
from torch.nn import functional

import search.training
from search.data import Images, SearchData
from search.graph import Graph, Model, Stem, assemble
from search.network import Network, build
from search.recipe import Precision, Recipe
from search.records import Machine
from search.space import SPACES
from search.training import CandidateFailure, TrainingResult, augment, augmentation, curve_steps, machine, permutation, train

CPU = torch.device("cpu")
RECIPE = Recipe(
    name="tiny", stem=Stem.CIFAR, width=4, cells=1, steps=6, batch=16, learning_rate=0.1, milestones=(4,), decay=0.1, momentum=0.9,
    weight_decay=3e-4, crop=6, padding=1, flip=True, repeats=2, curve_points=3, time_limit_seconds=None,
)  # fmt: skip
CLASSES = 3
SPACE, MODEL = SPACES["liu2018-hierarchical"], Model(Stem.CIFAR, 4, 1, 1, 8, CLASSES)


def recipe(**changes: Any) -> Recipe:
    return dataclasses.replace(RECIPE, **changes)


def images(count: int, seed: int) -> Images:
    """Learnable: each class is bright in another corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    pictures = torch.randn(count, 1, 8, 8, generator=generator)
    for at, label in enumerate(labels.tolist()):
        pictures[at, 0, (label // 2) * 4 : (label // 2) * 4 + 4, (label % 2) * 4 : (label % 2) * 4 + 4] += 2
    return Images(pictures, labels)


@pytest.fixture(scope="module")
def data() -> SearchData:
    return SearchData(images(70, 1), images(50, 2))


def random_graph() -> Graph:
    return assemble(SPACE, random_genotype(SPACE, 3), MODEL)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return random_graph()


@pytest.fixture(scope="module")
def plain_graph() -> Graph:
    """Chains of identities, so nothing but stem, 1×1 and separable convolutions in a row."""
    return assemble(SPACE, SPACE.trivial(), MODEL)


def raising(error: Exception) -> Callable[..., Any]:
    """A function that fails."""

    def fail(*_: object) -> None:
        raise error

    return fail


def metrics(result: TrainingResult) -> tuple[Any, ...]:
    """All that must not depend on how fast the machine is."""
    return result.fitness, [(one.accuracy, one.loss, one.curve) for one in result.repeats]


def test_same_arguments_give_the_same_bits(graph: Graph, data: SearchData) -> None:
    first = train(graph, RECIPE, data, 11, CPU, 1)
    torch.manual_seed(99)  # the global generator has no part in it
    assert metrics(train(graph, RECIPE, data, 11, CPU, 1)) == metrics(first)


def test_same_bits_with_two_threads(graph: Graph, data: SearchData) -> None:
    assert metrics(train(graph, RECIPE, data, 11, CPU, 2)) == metrics(train(graph, RECIPE, data, 11, CPU, 2))


def test_same_bits_in_another_process(graph: Graph, data: SearchData) -> None:
    program = (
        "import test_training as t; from search.training import train; from search.data import SearchData\n"
        "print(t.metrics(train(t.random_graph(), t.RECIPE, SearchData(t.images(70, 1), t.images(50, 2)), 11, t.CPU, 1)))"
    )
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}:{here.parent}", "PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(metrics(train(graph, RECIPE, data, 11, CPU, 1)))


def test_the_seed_seeds_and_repeats_differ(graph: Graph, data: SearchData) -> None:
    first, other = (train(graph, RECIPE, data, seed, CPU, 1) for seed in (11, 12))
    assert first.repeats[0].curve != other.repeats[0].curve
    assert first.repeats[0].curve != first.repeats[1].curve


def test_a_repeat_does_not_depend_on_how_many_there_are(graph: Graph, data: SearchData) -> None:
    one, two = (train(graph, recipe(repeats=count), data, 11, CPU, 1) for count in (1, 2))
    assert metrics(one)[1] == metrics(two)[1][:1]


def test_fitness_is_the_mean_of_the_repeats(graph: Graph, data: SearchData) -> None:
    result = train(graph, recipe(repeats=3), data, 11, CPU, 1)
    accuracies = [one.accuracy for one in result.repeats]
    assert len(set(accuracies)) > 1
    assert result.fitness == pytest.approx(sum(accuracies) / 3, abs=1e-15)
    assert all(one.accuracy * 50 == pytest.approx(round(one.accuracy * 50)) for one in result.repeats)
    assert result.peak_memory_bytes == 0  # not counted on the CPU


def test_a_machine_is_described_with_all_that_numbers_may_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    assert machine(CPU, 2, Precision.FLOAT32) == Machine(f"cpu {platform.machine()}", 2, "float32", versions)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"name of {device}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine(torch.device("cuda:1"), 1, Precision.FLOAT32) == Machine("name of cuda:1", 1, "float32", versions | {"cuda": "13.0"})


def test_training_learns(plain_graph: Graph, data: SearchData) -> None:
    result = train(plain_graph, recipe(steps=160, milestones=(120,), repeats=1, crop=None, padding=0, flip=False), data, 11, CPU, 1)
    assert result.fitness > 0.5  # chance: 1/3
    assert result.repeats[0].curve[-1][1] < result.repeats[0].curve[0][1] * 0.8


def test_training_is_plain_sgd(plain_graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    """U13 by hand: momentum without Nesterov, weight decay on every parameter; U10: the accuracy after the last step.

    In float64, because in float32 a rounding error grows a thousandfold within these steps.
    """
    data = SearchData(*(Images(part.images.double(), part.labels) for part in (data.train, data.validation)))
    monkeypatch.setattr(search.training, "build", lambda *arguments: build(*arguments).double())
    plain = recipe(learning_rate=0.02, weight_decay=0.1, crop=None, padding=0, flip=False, repeats=1, curve_points=6)
    network = build(plain_graph, 11, 0).double()
    velocity = [torch.zeros_like(parameter) for parameter in network.parameters()]
    curve = []
    for step in range(6):
        chosen = permutation(11, 0, step // 4, 70)[16 * (step % 4) : 16 * (step % 4) + 16]  # 70 // 16 = 4 batches an epoch
        network.zero_grad()
        loss = functional.cross_entropy(network(data.train.images[chosen]), data.train.labels[chosen])
        loss.backward()
        curve.append(float(loss.detach()))
        with torch.no_grad():
            for parameter, speed in zip(network.parameters(), velocity, strict=True):
                assert parameter.grad is not None
                speed.mul_(0.9).add_(parameter.grad + 0.1 * parameter)
                parameter.sub_((0.02 if step < 4 else 0.002) * speed)
    network.eval()
    with torch.no_grad():
        logits = network(data.validation.images)
    result = train(plain_graph, plain, data, 11, CPU, 1).repeats[0]
    assert [mean for _, mean in result.curve] == pytest.approx(curve, rel=1e-6)
    assert result.loss == pytest.approx(float(functional.cross_entropy(logits, data.validation.labels)), rel=1e-9)
    assert result.accuracy == pytest.approx(float((logits.argmax(1) == data.validation.labels).double().mean()))


class Spy:
    """Records what the network sees, in training and in evaluation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.train: list[torch.Tensor] = []
        self.evaluate: list[torch.Tensor] = []
        original = Network.forward

        def forward(network: Network, batch: torch.Tensor) -> torch.Tensor:
            (self.train if network.training else self.evaluate).append(batch.detach().clone())
            return original(network, batch)

        monkeypatch.setattr(Network, "forward", forward)


def numbered(count: int) -> Images:
    """Image k is k everywhere."""
    return Images(torch.arange(float(count))[:, None, None, None].expand(count, 1, 8, 8).clone(), torch.arange(count) % CLASSES)


def test_each_epoch_shows_every_image_at_most_once_and_drops_the_partial_batch(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    train(graph, recipe(steps=9, milestones=(), repeats=1, padding=0), SearchData(numbered(70), numbered(50)), 11, CPU, 1)
    seen = [[int(image.max()) for image in batch] for batch in spy.train]
    assert [len(batch) for batch in seen] == [16] * 9
    epochs = [[number for batch in seen[start : start + 4] for number in batch] for start in (0, 4)]  # 70 // 16 = 4 batches; 6 images dropped
    assert all(len(set(epoch)) == 64 for epoch in epochs)
    assert set(epochs[0]) != set(epochs[1])  # other images are dropped
    assert set(seen[8]) < set(range(70))


def test_validation_sees_every_full_image_once_in_batches(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    train(graph, recipe(repeats=1), SearchData(numbered(70), numbered(50)), 11, CPU, 1)
    assert [tuple(batch.shape) for batch in spy.evaluate] == [(16, 1, 8, 8)] * 3 + [(2, 1, 8, 8)]
    assert torch.equal(torch.cat(spy.evaluate), numbered(50).images)
    assert {tuple(batch.shape) for batch in spy.train} == {(16, 1, 6, 6)}


def test_learning_rate_follows_the_recipe_at_every_step(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []
    original = torch.optim.SGD.step

    def step(optimiser: torch.optim.SGD, *arguments: Any) -> Any:
        assert all(group["nesterov"] is False and group["weight_decay"] == 3e-4 and group["momentum"] == 0.9 for group in optimiser.param_groups)
        used.extend(group["lr"] for group in optimiser.param_groups)
        return original(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train(graph, recipe(repeats=1, milestones=(2, 5)), data, 11, CPU, 1)
    assert used == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_permutations_are_a_function_of_seed_repeat_and_epoch() -> None:
    base = permutation(1, 0, 0, 1000)
    assert sorted(base.tolist()) == list(range(1000))
    assert torch.equal(base, permutation(1, 0, 0, 1000))
    for other in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert not torch.equal(base, permutation(*other, 1000))


def test_augmentation_is_a_function_of_seed_repeat_and_step() -> None:
    base = augmentation(1, 0, 0, 256, 9)
    assert all(torch.equal(one, two) for one, two in zip(base, augmentation(1, 0, 0, 256, 9), strict=True))
    for other in ((2, 0, 0), (1, 1, 0), (1, 0, 1)):
        assert not any(torch.equal(one, two) for one, two in zip(base, augmentation(*other, 256, 9), strict=True))


def test_augmentation_is_uniform() -> None:
    tables = [augmentation(1, 0, step, 256, 9) for step in range(100)]
    corners, flips = torch.cat([one for one, _ in tables]), torch.cat([two for _, two in tables])
    assert (corners.shape, flips.dtype) == ((25_600, 2), torch.bool)
    for axis in (0, 1):
        counts = torch.bincount(corners[:, axis], minlength=9)
        assert counts.shape == (9,)
        assert float(((counts - 25_600 / 9) ** 2 / (25_600 / 9)).sum()) < 26.1  # chi-squared, 8 degrees, p = 0.001
    pairs = torch.bincount(corners[:, 0] * 9 + corners[:, 1], minlength=81)  # rows and columns independent
    assert float(((pairs - 25_600 / 81) ** 2 / (25_600 / 81)).sum()) < 124.8  # 80 degrees, p = 0.001
    assert abs(float(flips.double().mean()) - 0.5) < 0.011  # 3.5 standard errors


@pytest.mark.parametrize(("crop", "padding", "flip"), [(6, 0, False), (6, 0, True), (None, 0, True), (None, 2, False), (7, 3, True), (8, 1, True)])
def test_augment_does_what_the_table_says(crop: int | None, padding: int, flip: bool) -> None:
    batch = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    side = crop or 8
    found = augment(batch, recipe(crop=crop, padding=padding, flip=flip), 1, 0, 5)
    corners, flips = augmentation(1, 0, 5, 20, 8 + 2 * padding - side + 1)
    for image, result, (top, left), mirrored in zip(batch, found, corners.tolist(), flips.tolist(), strict=True):
        padded = torch.zeros(3, 8 + 2 * padding, 8 + 2 * padding)
        padded[:, padding : padding + 8, padding : padding + 8] = image
        expected = padded[:, top : top + side, left : left + side]
        assert torch.equal(result, expected.flip(2) if flip and mirrored else expected)


def test_without_crop_and_flip_images_pass_unchanged() -> None:
    batch = torch.randn(5, 1, 8, 8)
    assert augment(batch, recipe(crop=None, padding=0, flip=False), 1, 0, 0) is batch


@pytest.mark.parametrize(
    ("steps", "points", "expected"),
    [(6, 3, (2, 4, 6)), (80, 16, tuple(range(5, 81, 5))), (100, 30, None), (5, 9, (1, 2, 3, 4, 5)), (7, 1, (7,)), (7, 0, ())],
)
def test_curve_has_the_points_that_were_asked_for(steps: int, points: int, expected: tuple[int, ...] | None) -> None:
    found = curve_steps(recipe(steps=steps, curve_points=points))
    assert len(found) == min(points, steps)
    if points:
        assert found[-1] == steps
    if expected is not None:
        assert found == expected
    gaps = {after - before for before, after in zip((0, *found), found, strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_curve_points_are_means_since_the_point_before(graph: Graph, data: SearchData) -> None:
    every, some, none = (train(graph, recipe(repeats=1, curve_points=points), data, 11, CPU, 1).repeats[0].curve for points in (6, 2, 0))
    losses = [mean for _, mean in every]
    assert [step for step, _ in some] == [3, 6]
    assert [mean for _, mean in some] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-6)
    assert none == ()


@pytest.mark.parametrize("points", [0, 3])
def test_divergence_is_the_candidates_failure(graph: Graph, data: SearchData, points: int) -> None:
    with pytest.raises(CandidateFailure, match=r"training loss of repeat 0 is (nan|inf)") as caught:
        train(graph, recipe(learning_rate=1e30, milestones=(), curve_points=points), data, 11, CPU, 1)
    assert caught.value.failure == "diverged"


def test_a_loss_that_is_not_finite_stops_at_the_next_point_of_the_curve(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    original = functional.cross_entropy

    def cross_entropy(*arguments: Any, **options: Any) -> torch.Tensor:
        return original(*arguments, **options) * (math.nan if len(spy.train) == 1 else 1)

    monkeypatch.setattr(functional, "cross_entropy", cross_entropy)
    with pytest.raises(CandidateFailure, match="training loss of repeat 0 is nan by step 2"):
        train(graph, RECIPE, data, 11, CPU, 1)
    assert len(spy.train) == 2


def test_a_validation_loss_that_is_not_finite_is_divergence(graph: Graph, data: SearchData) -> None:
    broken = SearchData(data.train, Images(data.validation.images * math.nan, data.validation.labels))
    with pytest.raises(CandidateFailure, match="validation loss of repeat 0 is nan") as caught:
        train(graph, RECIPE, broken, 11, CPU, 1)
    assert caught.value.failure == "diverged"


class Clock:
    """A second passes at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.mark.parametrize("limit", [0.5, 3, 8, 10])
def test_the_time_limit_is_the_candidates_failure(graph: Graph, data: SearchData, limit: float) -> None:
    clock = Clock()
    with pytest.raises(CandidateFailure, match=f"took longer than its limit of {limit:g} s") as caught:
        train(graph, recipe(time_limit_seconds=limit), data, 11, CPU, 1, clock)
    assert caught.value.failure == "time_limit"
    assert clock.now <= limit + 3  # seen at the next step


def test_the_time_limit_holds_for_all_repeats_together(graph: Graph, data: SearchData) -> None:
    clock = Clock()
    train(graph, recipe(time_limit_seconds=15, repeats=1), data, 11, CPU, 1, clock)  # one fits
    assert clock.now < 15
    with pytest.raises(CandidateFailure, match="15 s"):
        train(graph, recipe(time_limit_seconds=15, repeats=2), data, 11, CPU, 1, Clock())


def test_seconds_are_the_clocks(graph: Graph, data: SearchData) -> None:
    one = train(graph, recipe(repeats=1), data, 11, CPU, 1, Clock()).repeats[0]
    # Looks: begin, 6 steps, end of training; the limit once more, end of evaluation.
    assert (one.train_seconds, one.evaluate_seconds) == (7, 2)


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=range(len(MEMORY_ERRORS)))
@pytest.mark.parametrize("where", ["build", "_evaluate"])
def test_out_of_memory_is_the_candidates_failure(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    monkeypatch.setattr(search.training, where, raising(error))
    with pytest.raises(CandidateFailure) as caught:
        train(graph, RECIPE, data, 11, CPU, 1)
    assert caught.value.failure == "out_of_memory"
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is error


def test_memory_that_torch_really_refuses_is_out_of_memory(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.training, "_evaluate", lambda *_: torch.empty(1 << 60))
    with pytest.raises(CandidateFailure) as caught:
        train(graph, RECIPE, data, 11, CPU, 1)
    assert caught.value.failure == "out_of_memory"


def test_after_out_of_memory_the_network_is_freed(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[weakref.ref[Network]] = []

    def spy(*arguments: Any) -> Network:
        networks.append(weakref.ref(network := build(*arguments)))
        return network

    monkeypatch.setattr(search.training, "build", spy)
    monkeypatch.setattr(search.training, "_evaluate", raising(torch.OutOfMemoryError("full")))
    with pytest.raises(CandidateFailure) as caught:
        train(graph, RECIPE, data, 11, CPU, 1)
    gc.collect()
    assert caught.value is not None  # the failure is still held, the network is not
    assert networks[0]() is None


def test_other_errors_are_not_the_candidates(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search.training, "build", raising(RuntimeError("CUDA error: uncorrectable ECC error encountered")))
    with pytest.raises(RuntimeError, match="ECC"):
        train(graph, RECIPE, data, 11, CPU, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 71}, "recipe 'tiny': batch is 71, but the training split has 70 images"),
        ({"crop": 11}, "recipe 'tiny': crop is 11, but images of 8 with padding 1 are 10 wide"),
    ],
)
def test_a_recipe_that_does_not_fit_the_data_says_so(graph: Graph, data: SearchData, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(graph, recipe(**changes), data, 11, CPU, 1)
    wide = Images(data.train.images.expand(-1, 3, -1, -1), data.train.labels)
    with pytest.raises(ValueError, match="the network takes 1 channels, the images have 3"):
        train(graph, RECIPE, SearchData(wide, wide), 11, CPU, 1)


def test_a_batch_as_large_as_the_training_split_is_one_step_an_epoch(graph: Graph, data: SearchData, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    train(graph, recipe(batch=70, repeats=1), data, 11, CPU, 1)
    assert [len(batch) for batch in spy.train] == [70] * 6


def test_training_prints_nothing(graph: Graph, data: SearchData, capfd: pytest.CaptureFixture[str]) -> None:
    train(graph, RECIPE, data, 11, CPU, 1)
    assert capfd.readouterr() == ("", "")


def test_torch_is_configured_to_be_deterministic(graph: Graph, data: SearchData) -> None:
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    train(graph, RECIPE, data, 11, CPU, 2)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
    assert torch.backends.cudnn.benchmark is torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_bits_on_cuda(graph: Graph, data: SearchData) -> None:
    cuda = torch.device("cuda")
    there = SearchData(*(Images(part.images.to(cuda), part.labels.to(cuda)) for part in (data.train, data.validation)))
    first = train(graph, RECIPE, there, 11, cuda, 1)
    assert metrics(train(graph, RECIPE, there, 11, cuda, 1)) == metrics(first)
    assert first.peak_memory_bytes > 0
    near = train(graph, recipe(steps=1, milestones=(), repeats=1, curve_points=1), data, 11, CPU, 1)
    far = train(graph, recipe(steps=1, milestones=(), repeats=1, curve_points=1), there, 11, cuda, 1)
    assert far.repeats[0].curve[0][1] == pytest.approx(near.repeats[0].curve[0][1], rel=1e-4)
