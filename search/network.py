"""The torch module of an assembled network (Liu et al. 2018, section 5.1; readings U11, U12, U15 of PAPERS).

Every weight tensor is drawn on the CPU from its own stream, named by (training seed, repeat, path in the graph, tensor):
so a network that was simplified, or whose parts are made in another order, still starts from the same weights.
It reads a graph and decides nothing about it, and leaves torch's global random state alone.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from search.graph import Graph, Kind, Operation, last_uses
from search.stream import derive


class _GlobalPool(nn.Module):
    """N × C × H × W to N × C. A plain mean: torch's adaptive pooling has no deterministic gradient on CUDA."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


class _Depthwise(nn.Conv2d):
    """3×3 depthwise convolution. Pads by itself where that is faster: oneDNN's backward pass is slow on outputs below 3×3."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        small = max(images.shape[-2:]) <= 2 * self.stride[0]
        if not small or images.device.type != "cpu":
            return super().forward(images)
        # bench/depthwise.py, 64 × 96 × 2 × 2, forward and backward, one core of a Xeon (model 207), medians of 15: as one call it takes 4.6 times
        # as long with AVX2, 1.3 times with AVX-512. On 3 × 3 and larger it is the other way round.
        return functional.conv2d(functional.pad(images, [1] * 4), self.weight, None, self.stride, 0, 1, self.groups)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


def _depthwise(width: int, stride: int) -> nn.Conv2d:
    return _Depthwise(width, width, 3, stride, 1, groups=width, bias=False)


def _normalised(width: int, **convolutions: nn.Module) -> nn.Sequential:
    """Convolutions, then one batch norm (U12) and ReLU."""
    norm = nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)
    return nn.Sequential(OrderedDict(**convolutions, norm=norm, relu=nn.ReLU(inplace=True)))


def _module(op: Operation, inputs: int) -> nn.Module:
    """Input: N × inputs × H × W (for the linear layer N × inputs); output: N × op.width × H' × W', H' = ⌈H / stride⌉.

    The names of its parts enter the streams that weights are drawn from: renaming one changes every training.
    """
    match op.kind:
        case Kind.CONV_3X3:
            return _normalised(op.width, convolution=_convolution(inputs, op.width, 3, op.stride))
        case Kind.CONV_1X1:
            return _normalised(op.width, convolution=_convolution(inputs, op.width, 1, op.stride))
        case Kind.DEPTHWISE_3X3:
            return _normalised(op.width, depthwise=_depthwise(inputs, op.stride))
        case Kind.SEPARABLE_3X3:
            depthwise = _depthwise(inputs, op.stride)
            return _normalised(op.width, depthwise=depthwise, pointwise=_convolution(inputs, op.width, 1))
        case Kind.MAX_POOL_3X3:
            return nn.MaxPool2d(3, op.stride, 1)
        case Kind.AVG_POOL_3X3:
            return nn.AvgPool2d(3, op.stride, 1, count_include_pad=False)  # U15
        case Kind.GLOBAL_POOL:
            return _GlobalPool()
        case Kind.LINEAR:
            return nn.Linear(inputs, op.width)
        case Kind.INPUT | Kind.CONCAT:
            return nn.Identity()


class Network(nn.Module):
    """Computes a graph. Input: float N × C × H × W of any H and W; output: logits N × classes.

    H and W need not be the graph's `size`: training crops are smaller than validation images.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._free = tuple(last_uses(graph))
        widths = [op.width for op in graph.operations]
        self.parts = nn.ModuleList(_module(op, widths[op.sources[0]] if op.sources else 0) for op in graph.operations)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch. A value is freed once nothing after it reads it."""
        values: dict[int, torch.Tensor] = {0: images}
        for at, (op, part) in enumerate(zip(self.graph.operations, self.parts, strict=True)):
            if op.kind is Kind.CONCAT:
                values[at] = torch.cat([values[source] for source in op.sources], dim=1)
            elif op.sources:
                values[at] = part(values[op.sources[0]])
            for done in self._free[at]:
                del values[done]
        return values[len(self.graph.operations) - 1]

    def parts_by_path(self) -> Iterator[tuple[str, nn.Module]]:
        """(path in the unmerged network, module) of every operation that has parameters, in the graph's order."""
        for op, part in zip(self.graph.operations, self.parts, strict=True):
            if next(part.parameters(), None) is not None:
                yield op.path, part


def _draw(part: nn.Module, seed: int, repeat: int, path: str) -> None:
    """Initial values of one operation's tensors (U11), in place."""
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Conv2d):
            generator = torch.Generator().manual_seed(derive(seed, "weights", repeat, path, f"{name}.weight"))
            # As torch counts it (and torchvision's networks use it), the fan-out of a depthwise convolution is 9 × width, not
            # the 9 outputs that one input reaches. Batch norm undoes the scale; which of the two is the paper's is not known.
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()  # weight 1, bias 0, running mean 0 and variance 1
        elif isinstance(layer, nn.Linear):
            generator = torch.Generator().manual_seed(derive(seed, "weights", repeat, path, "weight"))
            bound = 1.0 / math.sqrt(layer.in_features)  # what torch's default (Kaiming uniform with a = √5) amounts to
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()


def build(graph: Graph, seed: int, repeat: int) -> Network:
    """The network with its initial weights, float32 on the CPU, in training mode: a pure function of its arguments."""
    with torch.device("meta"):  # no memory and no draws from torch's global generator before the real ones
        network = Network(graph)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for path, part in network.parts_by_path():
            _draw(part, seed, repeat, path)
    return network
