"""Something that was promised and not kept, in a line for people."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Violation:
    """`at` in seconds of the day; `under` is the fault that was under way, or the one before."""

    rule: str
    at: float
    under: str
    detail: str

    def __str__(self) -> str:
        return f"[{self.rule}] at {self.at:.1f} s, {self.under}: {self.detail}"
