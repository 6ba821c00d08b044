"""Figures of model versions as tables for the admin: numbers to the right, a dash for nothing, no Python literals."""

from typing import Any

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from mlserve.console import units


def compared(report: dict[str, Any]) -> SafeString:
    """Both versions on the same transactions, and what chance leaves of their difference."""
    one, other, difference = report["candidate"], report["champion"], report["difference"]
    rows: list[tuple[object, ...]] = [
        (name, number(one.get(name)), number(other.get(name)))
        for name in ("average_precision", "flagged_share", "declined_share", "decline_precision", "recall", "brier")
    ]
    rows.append(
        (
            "difference in average precision (95 %)",
            f"{difference['value']:+.4f}",
            f"{difference['low']:+.4f} to {difference['high']:+.4f}",
        )
    )
    heading = f"{report['rows']:,} transactions, {report['frauds']:,} frauds, {report['first_day']} to"
    return table((f"{heading} {report['last_day']}", one["version"], other["version"]), rows, numbers={1, 2})


def number(value: object) -> str:
    """With four decimals; a dash for what is no number."""
    return f"{value:.4f}" if isinstance(value, float | int) else units.NOTHING


def pairs(values: dict[str, Any]) -> SafeString:
    """Numbers to the right, words to the left."""
    rows = (
        (name, "n" if isinstance(value, float | int) and not isinstance(value, bool) else "", _written(value))
        for name, value in values.items()
    )
    return format_html(
        '<table class="inside"><tbody>{}</tbody></table>',
        format_html_join("", '<tr><th scope="row">{}</th><td class="{}">{}</td></tr>', rows),
    )


def _written(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.6g}"
        case dict():
            return ", ".join(f"{name} {_written(one)}" for name, one in sorted(value.items()))
        case list():
            return "; ".join(_written(one) for one in value) or units.NOTHING
        case None:
            return units.NOTHING
    return str(value)


def table(headers: tuple[str, ...], rows: Any, *, numbers: set[int]) -> SafeString:
    """The columns `numbers` are aligned to the right, their headers too."""
    heads = "".join(
        '<th scope="col" class="n">{}</th>' if column in numbers else '<th scope="col">{}</th>'
        for column in range(len(headers))
    )
    cells = "".join('<td class="n">{}</td>' if column in numbers else "<td>{}</td>" for column in range(len(headers)))
    return format_html(
        '<table class="inside"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>',
        format_html(heads, *headers),
        format_html_join("", f"<tr>{cells}</tr>", rows),
    )
