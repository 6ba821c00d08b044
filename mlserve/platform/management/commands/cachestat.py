"""`manage.py cachestat`: the figures of the admin's cache overview, in a terminal or as JSON."""

import time
from argparse import ArgumentParser
from collections.abc import Iterable
from typing import IO, Any, cast

import msgspec
from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.table import Table

from mlserve.console import units
from mlserve.console.attention import notices
from mlserve.console.report import Report
from mlserve.console.survey import Survey, take_survey

_DEFAULT_WINDOW_S = 300.0
_FILE_WIDTH = 140
"""Columns where there is no terminal that would say."""


class Command(BaseCommand):
    help = "Hit rates, latencies, origin load, hot keys and memory of the cache, over all processes of this host."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--window",
            type=float,
            default=_DEFAULT_WINDOW_S,
            metavar="SECONDS",
            help="look back this far (default 300, at most 3600); 0 means everything since the start of counting",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, *_args: Any, window: float, json: bool, **_options: Any) -> None:
        if not 0 <= window <= 3600:
            raise CommandError(f"--window is {window:g}: give 0 (since the start) to 3600 seconds", returncode=2)
        survey = take_survey(now=time.time(), look_back_s=window or None)
        if json:
            self.stdout.write(msgspec.json.encode(_as_json(survey)).decode())
        else:
            width = None if self.stdout.isatty() else _FILE_WIDTH
            _print(survey, Console(file=cast("IO[str]", self.stdout), highlight=False, width=width))


def _as_json(survey: Survey) -> dict[str, object]:
    return {
        **msgspec.structs.asdict(survey.report),
        "hot_keys": survey.hot_keys,
        "notices": notices(survey.report, history_error=survey.history_error, unproven=survey.unproven),
    }


def _print(survey: Survey, console: Console) -> None:
    report = survey.report
    span = f"last {units.span(report.window_s)}" if report.window_s else "since the start of counting"
    console.print(f"Cache at {units.moment(report.at)}, {span}", style="bold")
    for notice in notices(report, history_error=survey.history_error, unproven=survey.unproven):
        console.print(f"{notice.level}: {notice.text}", style="red" if notice.level == "error" else "yellow")
    if not report.has_traffic:
        console.print("No traffic yet: nothing has been looked up in this span.")
    else:
        console.print(_summary(report))
        _print_table(console, "Tiers", ("tier", "answers", "keys", "hit rate", "asked", "p50", "p99"), _tiers(report))
        _print_table(
            console,
            "Feature groups",
            ("group", "keys", "L1", "L2", "loads", "age p50", "age p99", "limit", "stale", "defaults"),
            _groups(report),
        )
        _print_table(
            console,
            f"Prediction cache of {report.model.name} {report.model.version}" if report.model else "Prediction cache",
            ("tier", "verdict", "look-up", "computing", "hit rate", "needed"),
            _prediction_cache(report),
        )
        _print_table(console, "Misses", ("tier", "reason", "keys"), _misses(report))
    if survey.hot_keys:
        rows = ((key.kind, key.id, f"{key.per_minute:,.1f}/min") for key in survey.hot_keys)
        _print_table(console, "Hot keys", ("entity", "id", "look-ups"), rows)
    breakers = ((one.tier, str(one.pid), _breaker_word(one.openness)) for one in report.breakers)
    _print_table(console, "Breakers", ("tier", "process", "state"), breakers)
    console.print(_memory(report))


def _summary(report: Report) -> str:
    return "\n".join(
        (
            f"scores {units.count(report.scores.count)} ({units.rate(report.scores.per_s)}), "
            f"about {units.latency(report.scores.p50_s)} p50, {units.latency(report.scores.p99_s)} p99; "
            f"{units.share(report.scores.degraded_share)} degraded, "
            f"{units.count(report.scores.cold_start)} cold starts",
            f"origin {units.count(report.source.loads)} keys ({units.rate(report.source.loads_per_s)}); "
            f"{units.share(report.source.saved_share)} of keys answered without Postgres",
            f"journal {units.count(report.journal.commits)} commits, about {units.latency(report.journal.p50_s)} p50, "
            f"{units.latency(report.journal.p99_s)} p99",
        )
    )


def _memory(report: Report) -> str:
    l1 = f"L1 {units.count(report.l1.entries)} entries, {units.size(report.l1.bytes)} over all processes"
    l2 = report.l2
    if not l2.reachable:
        return f"{l1}\nL2 not reachable: {l2.error}"
    limit = units.size(l2.max_bytes) if l2.max_bytes else "no limit"
    return (
        f"{l1}\nL2 {l2.server}: {units.size(l2.used_bytes)} of {limit}, {units.count(l2.keys)} keys, "
        f"{units.count(l2.evicted_keys)} evicted by {l2.eviction_policy}"
    )


def _tiers(report: Report) -> Iterable[tuple[str, ...]]:
    for tier in report.tiers:
        yield (
            tier.tier,
            units.share(tier.answered_share),
            units.count(tier.hit_keys),
            units.share(tier.hit_share) if tier.tier in ("l1", "l2") else units.NOTHING,
            units.rate(tier.asked_keys_per_s),
            units.latency(tier.p50_s),
            units.latency(tier.p99_s),
        )


def _groups(report: Report) -> Iterable[tuple[str, ...]]:
    ages = {age.group: age for age in report.ages}
    for row in report.namespaces:
        age = ages.get(row.namespace)
        yield (
            row.namespace,
            units.count(row.keys),
            units.share(row.hit_shares["l1"]),
            units.share(row.hit_shares["l2"]),
            units.count(row.loads),
            units.age(age.p50) if age else units.NOTHING,
            units.age(age.p99) if age else units.NOTHING,
            units.span(age.limit_s) if age else units.NOTHING,
            units.count(row.stale),
            units.count(row.defaulted),
        )


def _prediction_cache(report: Report) -> Iterable[tuple[str, ...]]:
    for tier in report.prediction_cache:
        yield (
            tier.tier,
            tier.pays,
            units.latency(tier.look_up_s),
            units.latency(tier.computed_s),
            units.share(tier.hit_share),
            units.share(tier.needed_share),
        )


def _misses(report: Report) -> Iterable[tuple[str, ...]]:
    for tier in report.tiers:
        for reason, count in sorted(tier.misses.items(), key=lambda item: -item[1]):
            yield (tier.tier, reason, units.count(count))


def _breaker_word(openness: float) -> str:
    return {0.0: "closed", 0.5: "half-open", 1.0: "open"}.get(openness, f"{openness:g}")


def _print_table(console: Console, title: str, headers: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print()
        console.print(table)
