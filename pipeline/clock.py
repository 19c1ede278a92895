"""Time, as an argument: so that tests bring their own."""

import time
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how long something takes."""

    def now(self) -> float:
        """Seconds since 1970: for records only, it may jump."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment: for durations."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        ...


class SystemClock:
    """This machine's clock."""

    def now(self) -> float:
        """See Clock."""
        return time.time()

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        time.sleep(seconds)
