"""The torch module of an assembled network (Liu et al. 2018, section 5.1; readings U11, U12, U15 of PAPERS).

Every parameter is drawn from its own stream, named by (training seed, repeat, path in the graph, part): so a network
that was simplified or is trained in another order still starts from the same weights.
"""

import math

import torch
from torch import nn

from search.graph import Graph, Kind, Operation, last_uses
from search.stream import derive


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def _normalised(width: int, *convolutions: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(*convolutions, nn.BatchNorm2d(width, eps=1e-5, momentum=0.1), nn.ReLU(inplace=True))


def _module(op: Operation, inputs: int) -> nn.Module:
    """Input: N × inputs × H × W (pooled for the linear layer: N × inputs); output: N × op.width × H' × W'."""
    match op.kind:
        case Kind.CONV_3X3:
            return _normalised(op.width, _convolution(inputs, op.width, 3, op.stride))
        case Kind.CONV_1X1:
            return _normalised(op.width, _convolution(inputs, op.width, 1, op.stride))
        case Kind.DEPTHWISE_3X3:
            return _normalised(op.width, _convolution(inputs, inputs, 3, op.stride, inputs))
        case Kind.SEPARABLE_3X3:
            depthwise = _convolution(inputs, inputs, 3, op.stride, inputs)
            return _normalised(op.width, depthwise, _convolution(inputs, op.width, 1))
        case Kind.MAX_POOL_3X3:
            return nn.MaxPool2d(3, op.stride, 1)
        case Kind.AVG_POOL_3X3:
            return nn.AvgPool2d(3, op.stride, 1, count_include_pad=False)
        case Kind.GLOBAL_POOL:
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case Kind.LINEAR:
            return nn.Linear(inputs, op.width)
        case _:
            return nn.Identity()


class Network(nn.Module):
    """Computes a graph. Input: float N × C × H × W of any H and W; output: logits N × classes."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self._free = list(last_uses(graph))
        widths = [op.width for op in graph.operations]
        self.modules_in_order = nn.ModuleList(_module(op, widths[op.sources[0]] if op.sources else 0) for op in graph.operations)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        values: dict[int, torch.Tensor] = {0: images}
        for at, (op, module) in enumerate(zip(self.graph.operations, self.modules_in_order, strict=True)):
            if op.kind is Kind.CONCAT:
                values[at] = torch.cat([values[source] for source in op.sources], dim=1)
            elif op.sources:
                values[at] = module(values[op.sources[0]])
            for done in self._free[at]:
                del values[done]
        return values[len(self.graph.operations) - 1]


def build(graph: Graph, seed: int, repeat: int) -> Network:
    """The network with its initial weights (U11), on the CPU."""
    network = Network(graph)
    with torch.no_grad():
        for op, module in zip(graph.operations, network.modules_in_order, strict=True):
            for name, part in module.named_modules():
                generator = torch.Generator().manual_seed(derive(seed, "weights", repeat, op.path, name))
                if isinstance(part, nn.Conv2d):
                    nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                elif isinstance(part, nn.Linear):
                    nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
                    part.bias.zero_()
    return network
