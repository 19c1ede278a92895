"""A depthwise 3×3 convolution, forward and backward, on a small image: padded by hand against padded by oneDNN.

    .venv/bin/python bench/depthwise.py [AVX2]

Why search.network pads by itself where the output is below 3×3. CPU time of one thread; images of 64 × 96 × S × S in the layout that
training has on a CPU (channels last) and in torch's default. The two ways alternate, so that a slow moment of the machine hits
both. Given AVX2, torch and oneDNN use no newer instructions, as on a CPU that has none. Writes results/depthwise.json or
results/depthwise_avx2.json.
"""

import os
import sys
import time
from typing import Any

if sys.argv[1:] == ["AVX2"]:  # read when torch is imported
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

import record
import torch
from torch import nn
from torch.nn import functional

REPEATS, CALLS = 15, 30
BATCH, WIDTH = 64, 96


class Padded(nn.Conv2d):
    """What search.network._Depthwise does on small images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """See nn.Conv2d."""
        return functional.conv2d(functional.pad(images, [1] * 4), self.weight, None, self.stride, 0, 1, self.groups)


def milliseconds(layer: nn.Module, images: torch.Tensor) -> float:
    """CPU time of one forward and backward pass, the mean of a few."""
    began = time.process_time()
    for _ in range(CALLS):
        out = layer(images)
        torch.autograd.backward(out, torch.ones_like(out))
    return 1e3 * (time.process_time() - began) / CALLS


def compare(side: int, layout: torch.memory_format) -> dict[str, Any]:
    """Both ways on one size of images."""
    torch.manual_seed(1)
    images = torch.randn(BATCH, WIDTH, side, side).contiguous(memory_format=layout).requires_grad_()
    ways = {
        "padded by hand": Padded(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH, bias=False),
        "padded by oneDNN": nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH, bias=False),
    }
    layers = {way: layer.to(memory_format=layout) for way, layer in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in layers}
    for repeat in range(REPEATS + 1):
        for way, layer in layers.items():
            took = milliseconds(layer, images)
            if repeat:  # the first warms up
                times[way].append(took)
    ratios = [slow / fast for fast, slow in zip(*times.values(), strict=True)]
    return {**{f"{way}_ms": record.spread(found) for way, found in times.items()}, "oneDNN_to_hand": record.spread(ratios, 2)}


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    layouts = {"channels last": torch.channels_last, "default layout": torch.contiguous_format}
    figures = {f"{BATCH}×{WIDTH}×{side}×{side}, {name}": compare(side, layout) for side in (1, 2, 3, 4, 8) for name, layout in layouts.items()}
    name = "_".join(["depthwise", *sys.argv[1:]]).lower()
    record.write(name, {"threads": 1, "instructions": torch.backends.cpu.get_cpu_capability(), "figures": figures}, ("torch",))


if __name__ == "__main__":
    main()
