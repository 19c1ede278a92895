"""A recipe: how a candidate is trained, as plain data. What it says is part of *what* is searched (run.json)."""

import math
from dataclasses import dataclass
from enum import StrEnum

from search.graph import Stem


class Precision(StrEnum):
    """Number format of the training; belongs to the recipe, never to the device found."""

    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Training of one candidate (Liu et al. 2018, section 5.1; PAPERS: models and training)."""

    name: str
    stem: Stem
    width: int
    """Channels of the first group (c0)."""
    cells: int
    """Cells a group (N)."""
    steps: int
    batch: int
    """Images a step."""
    learning_rate: float
    milestones: tuple[int, ...]
    """Steps at which the learning rate is multiplied by `decay`."""
    decay: float
    momentum: float
    weight_decay: float
    """On all parameters (U13)."""
    crop: int | None
    """Side of the random training crop, in pixels; None: the full image. Validation always sees the full image."""
    padding: int
    """Zero pixels put around the (normalised) image before it is cropped."""
    flip: bool
    """Mirror half of the training images, left to right."""
    repeats: int
    """Independent trainings; fitness is the mean of their validation accuracies."""
    curve_points: int
    """Points of the learning curve (training loss), evenly spaced; each is a mean since the one before."""
    time_limit_seconds: float | None
    """A candidate's own limit over all its repeats; None: none."""
    precision: Precision = Precision.FLOAT32

    def __post_init__(self) -> None:
        for name, low in (("width", 1), ("cells", 1), ("steps", 1), ("batch", 2), ("repeats", 1), ("curve_points", 0), ("padding", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: {low} or more")
        for name, most in (("repeats", 1_000), ("curve_points", 10_000)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: at most {most}")
        for name, high in (("learning_rate", math.inf), ("decay", 1.0), ("momentum", 1.0), ("weight_decay", math.inf)):
            if not 0 <= getattr(self, name) <= high or not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 to {high}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(step < 1 for step in self.milestones):
            raise ValueError(f"milestones are {list(self.milestones)}; they must be steps above 0 in rising order")
        if self.crop is not None and self.crop < 1:
            raise ValueError(f"crop is {self.crop}; allowed: 1 or more, or null for the full image")
        if self.time_limit_seconds is not None and not self.time_limit_seconds > 0:
            raise ValueError(f"time_limit_seconds is {self.time_limit_seconds}; allowed: above 0, or null for none")

    def learning_rate_at(self, step: int) -> float:
        """The rate used in step `step`, counted from 0."""
        return self.learning_rate * self.decay ** sum(step >= milestone for milestone in self.milestones)
