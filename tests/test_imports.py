"""What the controller imports is small: no torch, no numpy, no scikit-learn, whatever the command line needs besides."""

import subprocess
import sys

HEAVY = ("torch", "torchvision", "numpy", "sklearn", "safetensors", "matplotlib", "jinja2")


def test_a_controller_imports_nothing_heavy() -> None:
    program = f"import sys, pipeline.cli, pipeline.launch, pipeline.verify; print([name for name in {HEAVY!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
