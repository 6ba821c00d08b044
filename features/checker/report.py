"""How a report reads: a table for people, one object for programs."""

import json
from typing import Any

import msgspec

from features.checker.run import Report
from features.checker.verdict import GATED, Nines, Quantiles


def as_json(report: Report) -> str:
    """One line; every figure, `clean` and the violations by name."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    verdict = found.pop("verdict")
    figures = {**found, **verdict, "clean": report.clean, "violations": report.verdict.violations}
    return json.dumps(figures)


def render(report: Report) -> str:
    verdict = report.verdict
    without = f", without {report.ablation}" if report.ablation else ""
    lines = [
        f"seed {report.seed}, {report.seconds:.0f} s, bound {report.bound_s:g} s{without}",
        "",
        _row("reads", f"{verdict.reads:,}", f"{report.reads_per_second:,.0f} a second"),
        _row("writes", f"{verdict.writes:,}", f"{report.writes_per_second:,.0f} a second"),
        _row("", "", f"{verdict.rolled_back:,} more rolled back, {verdict.in_doubt:,} of which nobody was told"),
        _row("answered by", "", f"{_counts(verdict.reads_by_tier)}; nobody {verdict.unanswered:,}"),
        _row("hit rate", f"{verdict.hit_rate:.3f}", "L1 and L2"),
        _row("unproven", f"{verdict.unproven_ratio:.4f}", "of the reads went to the source for want of proof"),
        _row("stale reads", f"{sum(verdict.stale_reads.values()):,}", _counts(verdict.stale_reads)),
        _row("staleness, at least", "", _quantiles(verdict.staleness_s)),
        _row("staleness, at most", "", _quantiles(verdict.upper_staleness_s)),
        "",
        *(_row(name, f"{getattr(verdict, name):,}", _MEANING[name]) for name in GATED),
        "",
        *(_row(f"nines at {each.horizon_s:g} s", _nines(each), "") for each in verdict.nines),
        "",
        *(_row(fault, f"{counts['fired']} of {counts['planned']}", "fired") for fault, counts in report.faults.items()),
        _row("failovers", f"{report.failovers}", f"{report.writer_crashes} writers died before they told the cache"),
    ]
    lines += [f"failed: {failure}" for failure in report.failures]
    verdict_line = "clean" if report.clean else f"broken: {_counts(verdict.violations) or 'the run itself'}"
    return "\n".join([*lines, "", verdict_line])


_MEANING = {
    "over_bound": "unflagged, and staler than the bound",
    "permanent_stale": "still old when all was quiet and mended",
    "wrong_bytes": "not the value of their version",
    "phantom": "of a version that was never committed",
    "future_reads": "of a commit that had not been sent",
    "ryw_violations": "of sessions that did not see their own write",
    "monotonic_violations": "of sessions that went back",
    "strong_violations": "asked for the source, and older than it",
}


def _row(name: str, figure: str, remark: str) -> str:
    return f"{name:22}{figure:>12}  {remark}".rstrip()


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _quantiles(found: Quantiles) -> str:
    return f"p50 {found.p50:.3f}, p99 {found.p99:.3f}, p99.9 {found.p999:.3f}, max {found.max:.3f} s"


def _nines(found: Nines) -> str:
    if found.nines is not None:
        return f"{found.nines:.2f}"
    return f"> {found.bound:.2f}"
