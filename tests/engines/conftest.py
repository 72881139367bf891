"""Process groups without processes."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore, ProcessGroup, ProcessGroupGloo


@pytest.fixture
def groups() -> list[ProcessGroup]:
    """One for each of two ranks; they have to be made at once, as each waits for the other."""
    store, found = HashStore(), dict[int, ProcessGroup]()

    def make(rank: int) -> None:
        # Torch's stubs name the base that it is no subclass of; it is one when it runs.
        found[rank] = ProcessGroupGloo(store, rank, 2, timedelta(seconds=5))  # pyright: ignore[reportArgumentType]

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]]
