"""One line about how the demo is doing."""

from mlserve.console.figures import Figures
from mlserve.console.report import hit_share, source_loads
from mlserve.console.window import between


def status_line(earlier: Figures, later: Figures) -> str:
    """What happened between two snapshots: rates per second and the share of look-ups that each tier answered."""
    window = between(earlier, later)
    scores = window.per_second(window.total("mlserve_scores_total")) or 0.0
    loads = window.per_second(source_loads(window)) or 0.0
    return (
        f"{scores:6.1f} scores/s   hit rate L1 {_share(hit_share(window, 'l1'))}, L2 {_share(hit_share(window, 'l2'))}"
        f"   {loads:.1f} keys/s from Postgres   L2 {later.l2.used_bytes / 2**20:.1f} MiB"
    )


def _share(share: float | None) -> str:
    return "  -  " if share is None else f"{100 * share:3.0f} %"
