"""Where a run stands: one byte in a file that every process of the run maps, so that looking costs nothing."""

import mmap
import os
from enum import IntEnum
from pathlib import Path


class Phase(IntEnum):
    RUNNING = 0
    QUIET = 1
    """Writers end."""
    FINAL = 2
    """Readers read every key in every tier once more, and end."""


class PhaseByte:
    def __init__(self, path: Path) -> None:
        """Makes the file if need be."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size == 0:
                os.ftruncate(descriptor, 1)
            self._map = mmap.mmap(descriptor, 1)
        finally:
            os.close(descriptor)

    @property
    def phase(self) -> Phase:
        return Phase(self._map[0])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._map[0] = phase
