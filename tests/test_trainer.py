"""Which failures of a GPU are its machine's, and that no attempt trains on a processor what was to be trained on a GPU."""

import pytest
import torch

from pipeline import trainer
from pipeline.errors import MachineFault


def test_a_gpu_that_was_given_and_cannot_be_used_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert trainer._device(0) == torch.device("cpu")
    with pytest.raises(MachineFault, match="driver"):
        trainer._device(1)


@pytest.mark.parametrize(
    ("message", "machine"),
    [
        ("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be …", True),
        ("CUDA error: all CUDA-capable device(s) is/are busy or unavailable", True),
        ("CUDA error: no kernel image is available for execution on the device", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_whose_fault_a_failure_of_the_gpu_is(message: str, machine: bool) -> None:
    assert trainer._of_the_machine(message) is machine
