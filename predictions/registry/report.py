"""A training and a comparison in words, for those who read a terminal."""

from typing import Any


def held_out_in_words(metrics: dict[str, Any]) -> list[str]:
    """What a version's thresholds do to its test transactions; nothing where that was not measured."""
    if "flagged" not in metrics:
        return []
    rows = metrics["test_rows"]
    return [
        f"flagged         {_at_thresholds(metrics, rows)} of the test transactions",
        f"calibration     Brier {metrics['brier']:.5f}; "
        + ", ".join(
            f"{one['from']:g} to {one['to']:g}: {one['rows']} rows score {one['mean_score']:.4f}, "
            f"{one['fraud_share']:.4f} are fraud"
            for one in metrics.get("reliability", ())
        ),
        *(
            f"choice          if a missed fraud costs {one['cost_ratio']:g} false declines: decline from "
            f"{one['decline_from']:.4f}, {one['declined']} declined, {one['false_declines']} of them genuine, "
            f"{one['missed']} frauds not declined"
            for one in metrics.get("threshold_choices", ())
        ),
    ]


def compared_in_words(report: dict[str, Any]) -> list[str]:
    """A line for either version, and their difference."""
    lines = [
        f"compared on     {report['rows']} transactions, {report['frauds']} frauds, of {report['customers']} "
        f"customers, {report['first_day']} to {report['last_day']}"
    ]
    for role in ("candidate", "champion"):
        of = report[role]
        lines.append(
            f"{role:<15} {of['version']}: average precision {of['average_precision']:.3f}, Brier {of['brier']:.5f}, "
            f"{_at_thresholds(of, report['rows'])}"
        )
    difference = report["difference"]
    lines.append(
        f"difference      {difference['value']:+.3f} in average precision, 95 % interval {difference['low']:+.3f} to "
        f"{difference['high']:+.3f}"
    )
    return lines


def _at_thresholds(of: dict[str, Any], rows: int) -> str:
    return (
        f"flags {of['flagged']} of {rows} ({of['flagged_share']:.2%}), declines {of['declined']} "
        f"({of['declined_share']:.2%}), precision of decline {_figure(of['decline_precision'])}, recall "
        f"{_figure(of['recall'])}"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
