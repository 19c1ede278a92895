"""The torch module against a slow reference written from the paper's definition, and against search.cost."""

import hashlib
import itertools
from collections.abc import Iterator

import pytest
import torch
from published import PUBLISHED_TEXT, published_from_table, random_genotype
from torch import nn
from torch.nn import functional

from search.cost import cost
from search.genotype import Genotype, Motif
from search.graph import Graph, Kind, Model, Operation, Stem, Unbuildable, assemble
from search.network import Network, build
from search.space import SPACES, Level, Primitive, Space

HIERARCHICAL, FLAT = SPACES["liu2018-hierarchical"], SPACES["liu2018-flat"]
SMALL = Model(Stem.CIFAR, 4, 1, 3, 8, 10)
IMAGENET = Model(Stem.IMAGENET, 4, 1, 3, 32, 7)

torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for each other


class Reference:
    """Liu et al. 2018, section 2, as written: node i = concatenation of what its incoming edges give, recursively per motif.

    It knows genotypes and paths of parameters, and nothing of search.graph. None = there is no such feature map (U1).
    """

    def __init__(self, space: Space, genotype: Genotype, network: Network | None, width: int) -> None:
        self.space, self.genotype, self.width = space, genotype, width
        self.tensors = dict(network.parts_by_path()) if network is not None else None

    def convolution(self, x: torch.Tensor, path: str, kinds: tuple[tuple[str, int], ...], stride: int = 1) -> torch.Tensor:
        """Convolutions (name, kernel), then batch norm over the batch and ReLU."""
        if self.tensors is None:
            return x  # only which nodes exist is asked for
        if path not in self.tensors:
            return x * float("nan")  # the graph left it out as dead: if anything read it, the logits would say so
        part = dict(self.tensors[path].named_parameters())
        for name, kernel in kinds:
            weight = part[f"{name}.weight"]
            groups = x.shape[1] if name == "depthwise" else 1
            step = stride if name != "pointwise" else 1
            x = functional.conv2d(x, weight, None, step, (kernel - 1) // 2, groups=groups)
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
        scale, shift = (part[f"norm.{name}"][None, :, None, None] for name in ("weight", "bias"))
        return ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).clamp(min=0)

    def separable(self, x: torch.Tensor, path: str, stride: int = 1) -> torch.Tensor:
        return self.convolution(x, path, (("depthwise", 3), ("pointwise", 1)), stride)

    def primitive(self, number: int, x: torch.Tensor, path: str) -> torch.Tensor:
        match self.space.primitives[number]:
            case Primitive.CONV_1X1:
                return self.convolution(x, path, (("convolution", 1),))
            case Primitive.DEPTHWISE_3X3:
                return self.convolution(x, path, (("depthwise", 3),))
            case Primitive.SEPARABLE_3X3:
                return self.separable(x, path)
            case Primitive.MAX_POOL_3X3:
                return self.windows(x, float("-inf")).amax(-1)
            case Primitive.AVG_POOL_3X3:
                inside = self.windows(torch.ones_like(x), 0.0)
                return (self.windows(x, 0.0) * inside).sum(-1) / inside.sum(-1)  # U15: padding not counted
            case Primitive.IDENTITY:
                return x

    @staticmethod
    def windows(x: torch.Tensor, fill: float) -> torch.Tensor:
        """N × C × H × W × 9: each pixel's neighbourhood."""
        height, width = x.shape[2:]
        padded = functional.pad(x, (1, 1, 1, 1), value=fill)
        return torch.stack([padded[:, :, r : r + height, c : c + width] for r in range(3) for c in range(3)], dim=-1)

    def motif(self, level: int, number: int, x: torch.Tensor, path: str) -> torch.Tensor | None:
        if level == 1:
            return self.primitive(number, x, path)
        motif = self.genotype.levels[level - 2][number]
        nodes: dict[int, torch.Tensor] = {0: x}
        for i in range(1, motif.nodes):
            incoming = []
            for j in range(i):
                operation = motif.matrix()[i][j]
                if operation == 0 or j not in nodes:
                    continue
                made = self.motif(level - 1, operation - 1, nodes[j], f"{path}/{i}-{j}")
                if made is not None:
                    incoming.append(made)
            if incoming:
                nodes[i] = torch.cat(incoming, dim=1)
        sink = nodes.get(motif.nodes - 1)
        if sink is not None and level == 2 and len(self.genotype.levels) == 2:
            sink = self.convolution(sink, f"{path}/out", (("convolution", 1),))
        return sink

    def cell(self, x: torch.Tensor, path: str) -> torch.Tensor | None:
        return self.motif(len(self.genotype.levels) + 1, 0, x, path)

    def network(self, x: torch.Tensor, groups: tuple[int, ...], stems: int) -> torch.Tensor:
        """`groups`: cells of each; `stems`: 1, or 2 of stride 2."""
        for stem in range(stems):
            x = self.convolution(x, f"stem{stem}" if stems > 1 else "stem", (("convolution", 3),), stems)
        for group, cells in enumerate(groups):
            for cell in range(cells):
                made = self.cell(x, f"group{group}.cell{cell}")
                assert made is not None
                ends = cell == cells - 1 and group < len(groups) - 1
                x = self.separable(made, f"group{group}.cell{cell}.after", 2 if ends else 1)
        assert self.tensors is not None
        linear = dict(self.tensors["linear"].named_parameters())
        return functional.linear(x.mean((2, 3)), linear["weight"], linear["bias"])


def shuffled(network: Network) -> Network:
    """In float64 with every parameter at random: ones and zeros of batch norm and bias would hide mistakes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + 0.2)
    return network.double()


def compare(space: Space, genotype: Genotype, model: Model, groups: tuple[int, ...], stems: int, side: int) -> Network | None:
    """The network, None when it cannot be built; both ways must agree on that and on the logits."""
    nothing = Reference(space, genotype, None, model.width).cell(torch.zeros(1, 1, 1, 1), "")
    try:
        graph = assemble(space, genotype, model)
    except Unbuildable:
        assert nothing is None
        return None
    assert nothing is not None
    network = shuffled(build(graph, 3, 0))
    images = torch.randn(3, model.channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = Reference(space, genotype, network, model.width).network(images, groups, stems)
        found = network(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 1e-6  # it says something
    return network


@pytest.mark.parametrize("number", range(36))
def test_network_equals_the_papers_definition(number: int) -> None:
    # Few mutations leave sparse genotypes, which meet absent nodes and edges; many, dense ones.
    genotype = random_genotype(HIERARCHICAL, number, (30, 100, 1000)[number % 3])
    cells = 1 + number % 2
    model = Model(Stem.CIFAR, 3, cells, 3, 8, 10)
    compare(HIERARCHICAL, genotype, model, (cells,) * 3, 1, (8, 7, 12)[number % 3])


@pytest.mark.parametrize("number", range(8))
def test_flat_network_equals_the_papers_definition(number: int) -> None:
    compare(FLAT, random_genotype(FLAT, number, 60), Model(Stem.CIFAR, 2, 1, 1, 8, 5), (1, 1, 1), 1, 8)


def test_imagenet_network_equals_the_papers_definition() -> None:
    model = Model(Stem.IMAGENET, 4, 2, 3, 32, 7)
    assert compare(HIERARCHICAL, published_from_table(), model, (1, 2, 2, 2), 2, 32)


def test_a_source_may_be_merged_with_itself() -> None:
    """Two identity paths from one node: the same channels twice."""
    space = Space("twice", (Primitive.IDENTITY,), (Level(1, 3),))
    genotype = Genotype(((Motif(((1,), (1, 1))),),))
    graph = assemble(space, genotype, SMALL)
    assert any(op.kind is Kind.CONCAT and len(set(op.sources)) == 1 for op in graph.operations)
    assert compare(space, genotype, SMALL, (1, 1, 1), 1, 8)


def test_the_published_cell_is_the_papers_table() -> None:
    assert published_from_table().to_text() == PUBLISHED_TEXT
    assert Genotype.from_text(PUBLISHED_TEXT) == published_from_table()


PUBLISHED_COUNTS = [
    (Model(Stem.CIFAR, 64, 2, 3, 32, 10), 15.73),
    (Model(Stem.CIFAR, 128, 2, 3, 32, 10), 61.90),
    (Model(Stem.CIFAR, 16, 1, 3, 32, 10), 0.542),
    (Model(Stem.IMAGENET, 64, 2, 3, 299, 1000), 62.83),
]
"""PAPERS, reading A: millions of parameters."""


@pytest.mark.parametrize(("model", "millions"), PUBLISHED_COUNTS)
def test_published_cell_has_the_published_number_of_parameters(model: Model, millions: float) -> None:
    graph = assemble(HIERARCHICAL, published_from_table(), model)
    found = cost(graph).parameters
    assert round(found / 1e6, 3 if millions < 1 else 2) == millions
    with torch.device("meta"):  # shapes without memory
        assert found == sum(parameter.numel() for parameter in Network(graph).parameters())


def measure(network: Network, model: Model) -> tuple[int, int, dict[int, tuple[int, ...]]]:
    """(parameters, multiply-adds of one image, shape of every operation's output) as torch has them."""
    shapes: dict[int, tuple[int, ...]] = {}
    adds = 0

    def seen(at: int) -> object:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            shapes[at] = tuple(output.shape[1:])

        return hook

    def counted(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal adds
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            adds += output[0].numel() * kernel * inputs[0].shape[1] // module.groups
        else:
            adds += output[0].numel() * inputs[0].shape[1]

    for at, part in enumerate(network.eval().parts):
        part.register_forward_hook(seen(at))
        for layer in part.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(counted)
    with torch.no_grad():  # for real, on zeros: on torch's meta device batch norm is computed in Python, which took most of this file's time
        network(torch.zeros(1, model.channels, model.size, model.size, dtype=next(network.parameters()).dtype))
    return sum(parameter.numel() for parameter in network.parameters()), adds, shapes


def expected_shape(op: Operation) -> tuple[int, ...]:
    return (op.width,) if op.kind in (Kind.GLOBAL_POOL, Kind.LINEAR) else (op.width, op.size, op.size)


def agree(network: Network, model: Model) -> None:
    graph = network.graph
    parameters, adds, shapes = measure(network, model)
    found = cost(graph)
    assert (parameters, adds) == (found.parameters, found.multiply_adds)
    for at, shape in shapes.items():
        assert shape == expected_shape(graph.operations[at])
    assert len(shapes) == sum(op.kind not in (Kind.INPUT, Kind.CONCAT) for op in graph.operations)


@pytest.mark.parametrize("number", range(12))
def test_cost_is_what_torch_counts(number: int) -> None:
    space = FLAT if number % 4 == 3 else HIERARCHICAL
    for model in (SMALL, Model(Stem.CIFAR, 5, 2, 1, 11, 3), IMAGENET):
        try:
            graph = assemble(space, random_genotype(space, 100 + number, 80), model)
        except Unbuildable:
            continue
        agree(Network(graph), model)


TINY = Space("tiny", (Primitive.IDENTITY, Primitive.SEPARABLE_3X3, Primitive.MAX_POOL_3X3), (Level(1, 3), Level(1, 3)))


def every_genotype(space: Space) -> Iterator[Genotype]:
    """All of a space: 4³ motifs × 2³ cells of TINY."""

    def motifs(level: int) -> list[Motif]:
        nodes, choices = space.levels[level - 2].nodes, range(space.operations(level) + 1)
        rows = [list(itertools.product(choices, repeat=node)) for node in range(1, nodes)]
        return [Motif(chosen) for chosen in itertools.product(*rows)]

    per_level = [itertools.product(motifs(at), repeat=level.motifs) for at, level in enumerate(space.levels, start=2)]
    for levels in itertools.product(*per_level):
        yield Genotype(levels)


def test_every_genotype_of_a_small_space_is_the_same_network_everywhere() -> None:
    model = Model(Stem.CIFAR, 2, 1, 1, 4, 2)
    built = unbuildable = 0
    for genotype in every_genotype(TINY):
        network = compare(TINY, genotype, model, (1, 1, 1), 1, 4)
        if network is not None:
            agree(network, model)
            built += 1
        else:
            unbuildable += 1
    # A 3-node graph over k operations and none joins source and sink unless edge 2-0 is none and 1-0 or 2-1 is:
    # (k + 1)³ - (2k + 1) ways. So 64 - 7 motifs and 8 - 3 cells; a dead motif makes every cell dead.
    assert (built, unbuildable) == (57 * 5, 64 * 8 - 57 * 5)


NETWORKS = "5d85d615a3a87de301fed3dae4362a5e55b3825dcc28ecb27f6654c80483d223"
"""Of the digests and paths below. Another one is another algorithm: change it only with `records.ALGORITHM`."""


def test_networks_are_the_same_for_ever() -> None:
    text: list[str] = []
    for space, number in itertools.product(SPACES.values(), range(60)):
        try:
            graph = assemble(space, random_genotype(space, number, (20, 60, 1000)[number % 3]), Model(Stem.CIFAR, 4, 2, 3, 8, 10))
        except Unbuildable:
            text.append("none")
        else:
            text += [graph.digest, *(op.path for op in graph.operations)]
    assert text.count("none") == 5
    assert hashlib.sha256("\n".join(text).encode()).hexdigest() == NETWORKS


def graph_of(number: int, model: Model = SMALL) -> Graph:
    return assemble(HIERARCHICAL, random_genotype(HIERARCHICAL, number), model)


def state(network: Network) -> dict[str, torch.Tensor]:
    return dict(network.state_dict())


def test_the_seed_and_the_repeat_seed_every_weight() -> None:
    base, again = state(build(graph_of(1), 7, 0)), state(build(graph_of(1), 7, 0))
    drawn = [name for name in base if name.endswith("weight") and "norm" not in name]
    assert len(drawn) > 10
    assert all(torch.equal(base[name], again[name]) for name in base)
    for other in (state(build(graph_of(1), 8, 0)), state(build(graph_of(1), 7, 1))):
        assert not any(torch.equal(base[name], other[name]) for name in drawn)


def test_building_leaves_the_global_generator_alone_and_does_not_read_it() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = state(build(graph_of(2), 7, 0))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    other = state(build(graph_of(2), 7, 0))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_weight_depends_on_its_path_and_not_on_the_rest_of_the_network() -> None:
    """Two genotypes share stem, what follows the cells, and the linear layer: those begin with equal weights."""
    first, second = (dict(build(graph_of(number), 7, 0).parts_by_path()) for number in (1, 2))
    weights = [dict(parts["stem"].named_parameters())["convolution.weight"] for parts in (first, second)]
    assert torch.equal(*weights)
    assert torch.equal(*(dict(parts["linear"].named_parameters())["weight"] for parts in (first, second)))


def test_paths_of_parameters_are_unique() -> None:
    for number in range(20):
        paths = [path for path, _ in build(graph_of(number), 0, 0).parts_by_path()]
        assert len(paths) == len(set(paths))


def test_initial_values_are_distributed_as_said() -> None:
    """U11, U12: on the published cell, wide enough to measure."""
    network = build(assemble(HIERARCHICAL, published_from_table(), Model(Stem.CIFAR, 32, 1, 3, 8, 10)), 1, 0)
    for path, part in network.parts_by_path():
        for name, layer in part.named_modules():
            if isinstance(layer, nn.Conv2d):
                expected = (2 / (layer.out_channels * layer.kernel_size[0] ** 2)) ** 0.5
                slack = 5 / (2 * layer.weight.numel()) ** 0.5  # 5 standard errors of a standard deviation
                assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=slack), (path, name)
                assert layer.bias is None
            elif isinstance(layer, nn.BatchNorm2d):
                assert (layer.eps, layer.momentum) == (1e-5, 0.1)
                assert torch.all(layer.weight == 1)
                assert torch.all(layer.bias == 0)
                assert torch.all(layer.running_mean == 0)
                assert torch.all(layer.running_var == 1)
            elif isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                assert bound * 0.95 < float(layer.weight.detach().abs().max()) <= bound
                assert torch.all(layer.bias == 0)


def test_values_are_freed_after_their_last_use() -> None:
    """At no time does evaluation hold more values than the graph says are needed."""
    graph = graph_of(4)
    last = {source: at for at, op in enumerate(graph.operations) for source in op.sources}
    needed = [sum(made <= at < last.get(made, at + 1) for made in range(len(graph.operations))) for at in range(len(graph.operations))]
    network = build(graph, 0, 0).eval()
    held: list[int] = []
    alive: set[int] = set()

    def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        import weakref

        key = id(output)
        alive.add(key)
        weakref.finalize(output, alive.discard, key)
        held.append(len(alive))

    for op, part in zip(graph.operations, network.parts, strict=True):
        if op.kind not in (Kind.INPUT, Kind.CONCAT):
            part.register_forward_hook(hook)
    with torch.no_grad():
        network(torch.zeros(1, 3, 8, 8))
    assert max(held) <= max(needed) + 1  # the one being made beside those kept
    assert len(held) > 4 * max(held)
