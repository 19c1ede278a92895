"""What a network costs, computed from its graph: parameters, multiply-adds, predicted training memory."""

from dataclasses import dataclass

from search.graph import Graph, Kind, Operation

CONVOLUTIONS = frozenset({Kind.CONV_3X3, Kind.CONV_1X1, Kind.DEPTHWISE_3X3, Kind.SEPARABLE_3X3})


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters (weights, 2 batch-norm numbers a channel, the linear bias); multiply-adds an image (batch norm,
    ReLU, pooling and merging not counted); predicted peak memory of one training step in bytes."""

    parameters: int
    multiply_adds: int
    memory_bytes: int


def _weights(op: Operation, inputs: int) -> int:
    match op.kind:
        case Kind.CONV_3X3:
            return 9 * inputs * op.width
        case Kind.CONV_1X1 | Kind.LINEAR:
            return inputs * op.width
        case Kind.DEPTHWISE_3X3:
            return 9 * inputs
        case Kind.SEPARABLE_3X3:
            return 9 * inputs + inputs * op.width
        case _:
            return 0


def _saved_bytes(op: Operation, inputs: int) -> int:
    """Bytes an image that float32 training keeps for the backward pass: a convolution keeps what batch norm and ReLU
    read (2 tensors), a separable one also its middle; max pooling also 8-byte indices; pooling and concat their output."""
    pixels = op.size * op.size
    own = 4 * pixels * op.width
    if op.kind is Kind.SEPARABLE_3X3:
        return 2 * own + 4 * pixels * inputs
    if op.kind in CONVOLUTIONS:
        return 2 * own
    return own + (8 * pixels * op.width if op.kind is Kind.MAX_POOL_3X3 else 0)


def cost(graph: Graph, batch: int = 1) -> Cost:
    """Cost of a graph; `batch` images a step enter only the memory (a prediction, no promise: our reading)."""
    parameters = multiply_adds = saved = largest = 0
    for op in graph.operations:
        inputs = graph.operations[op.sources[0]].width if op.sources else 0
        weights = _weights(op, inputs)
        parameters += weights
        if op.kind in CONVOLUTIONS:
            parameters += 2 * op.width
        elif op.kind is Kind.LINEAR:
            parameters += op.width
        multiply_adds += weights * op.size * op.size
        held = _saved_bytes(op, inputs)
        saved += held
        largest = max(largest, held)
    # Weights, gradients and momentum, 4 bytes each; the largest operation's gradients come on top of what is saved.
    return Cost(parameters, multiply_adds, 12 * parameters + batch * (saved + largest))
