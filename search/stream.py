"""Random numbers whose stream this project pins: SHA-256 in counter mode.

Python keeps only `random.random()` stable between versions; `hiernas verify` must re-derive a
candidate years later on another machine, so the generator and every way of drawing from it are ours.
Each use has its own stream, named by (run seed, purpose, index); no stream is shared or resumed.
"""

import hashlib
import struct

_WORD = 1 << 64
_BLOCK = struct.Struct(">4Q")


def _key(seed: int, purpose: str, *index: int | str) -> bytes:
    name = "/".join([str(seed), purpose, *map(str, index)])
    return hashlib.sha256(name.encode()).digest()


def derive(seed: int, purpose: str, *index: int | str) -> int:
    """A seed of 53 bits (exact in every JSON reader) for one purpose."""
    return int.from_bytes(_key(seed, purpose, *index)[:8], "big") >> 11


class Stream:
    """An endless sequence of uniform draws, the same for the same (seed, purpose, index)."""

    def __init__(self, seed: int, purpose: str, *index: int | str) -> None:
        self._key = _key(seed, purpose, *index)
        self._counter = 0
        self._words: list[int] = []

    def word(self) -> int:
        """The next 64 bits."""
        if not self._words:
            block = hashlib.sha256(self._key + self._counter.to_bytes(8, "big")).digest()
            self._counter += 1
            self._words = list(_BLOCK.unpack(block)[::-1])
        return self._words.pop()

    def below(self, bound: int) -> int:
        """Uniform in 0 … bound-1, without bias (words past the last whole multiple are redrawn)."""
        if bound < 1:
            raise ValueError(f"a draw below {bound} has no value: the bound must be at least 1")
        while True:
            word = self._words.pop() if self._words else self.word()
            # All words below the last whole multiple of the bound are fair; nearly all are below what is quick to compute.
            if word < _WORD - bound or word < _WORD - _WORD % bound:
                return word % bound

    def sample(self, count: int, size: int) -> list[int]:
        """`size` different values of 0 … count-1, in drawn order; O(size) whatever the count."""
        if not 0 <= size <= count:
            raise ValueError(f"cannot draw {size} different values out of {count}")
        moved: dict[int, int] = {}
        drawn = []
        for at in range(size):
            pick = at + self.below(count - at)
            drawn.append(moved.get(pick, pick))
            moved[pick] = moved.get(at, at)
        return drawn
