"""What the processes of a run are told: `stand.json` in its directory."""

from pathlib import Path

import msgspec

NAME = "stand.json"


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """`began_ns` on the clock of the histories. `proven`: what the policies say of freshness; if not, TTLs count."""

    directory: str
    began_ns: int
    seed: int
    keys: int
    bound_s: float
    ablation: str = ""
    proven: bool = True

    @property
    def logs(self) -> Path:
        return Path(self.directory) / "history"

    @property
    def phase_file(self) -> Path:
        return Path(self.directory) / "phase"

    def write(self) -> None:
        self.logs.mkdir(exist_ok=True)
        (Path(self.directory) / NAME).write_bytes(msgspec.json.encode(self))

    @classmethod
    def read(cls, directory: Path) -> "RunFile":
        return msgspec.json.decode((directory / NAME).read_bytes(), type=cls)
