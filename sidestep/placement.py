"""Which process has which blocks."""

from __future__ import annotations

from dataclasses import dataclass

from sidestep.errors import UsageError


@dataclass(frozen=True)
class Placement:
    """Blocks on ranks, and every rank in so many replicas.

    shares: how many blocks each rank has, in order; () is as equal as can be.
    """

    ranks: int = 1
    replicas: int = 1
    shares: tuple[int, ...] = ()

    @property
    def processes(self) -> int:
        return self.ranks * self.replicas

    def blocks(self, count: int) -> list[range]:
        """Those of every rank: consecutive ones.  Raises UsageError for shares that are not of so many blocks."""
        if self.ranks > count:
            raise UsageError(f"got --ranks {self.ranks} for {count} blocks, expected at most one a block.")
        if self.shares and (len(self.shares) != self.ranks or sum(self.shares) != count or min(self.shares) < 1):
            raise UsageError(
                f"got --shares {','.join(map(str, self.shares))}, expected {self.ranks} numbers of at least 1, one a "
                f"rank, that add up to {count} blocks."
            )
        ends = [
            sum(self.shares[: rank + 1]) if self.shares else count * (rank + 1) // self.ranks
            for rank in range(self.ranks)
        ]
        return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
