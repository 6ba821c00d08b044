"""SVG that needs neither script nor style of its own."""

from math import inf
from xml.etree import ElementTree

import pytest

from mlserve.console import units
from mlserve.console.charts import Line, age_chart, linear_scale, log_scale, share_bar, share_scale, time_chart

_SVG = "{http://www.w3.org/2000/svg}"


def _chart(*lines: Line, scale=share_scale, write=units.share):
    return time_chart(
        title="Hit <rate>", note="of & keys", lines=lines, since=0.0, until=3600.0, scale_of=scale, write=write
    )


def _line(*points: tuple[float, float | None], name: str = "L1") -> Line:
    return Line(name=name, style="tier-l1", points=points)


def test_a_chart_names_itself_and_escapes_what_it_shows() -> None:
    """Title and description are there for those who do not see it; text cannot become markup."""
    svg = ElementTree.fromstring(_chart(_line((0.0, 0.5), (30.0, 0.75), name="<b>")).svg)
    assert svg.findtext("title") == "Hit <rate>"
    assert "of & keys" in (svg.findtext("desc") or "")
    assert "<b> 75.0" in (svg.findtext("desc") or "")


def test_a_chart_holds_nothing_that_the_policy_forbids() -> None:
    """No style attribute, no script, no handler, no reference."""
    chart = _chart(_line((0.0, 0.5), (30.0, 0.75)))
    for markup in (chart.svg, age_chart(group="x", ranges=[(0, 1, 1)], limit_s=1), share_bar(title="x", share=0.4)):
        for element in ElementTree.fromstring(markup).iter():
            assert element.tag.removeprefix(_SVG) in {"svg", "title", "desc", "line", "path", "text", "rect"}
            assert not [name for name in element.attrib if name == "style" or name.startswith(("on", "href"))]


def test_a_line_breaks_where_nothing_is_known() -> None:
    """A gap in the series and a value that does not exist start a new stroke each."""
    chart = _chart(_line((0.0, 0.1), (30.0, 0.2), (60.0, None), (90.0, 0.3), (600.0, 0.4), (630.0, 0.5)))
    path = ElementTree.fromstring(chart.svg).find("path")
    assert path is not None
    assert path.attrib["d"].count("M") == 3
    assert path.attrib["d"].count("L") == 2


def test_without_two_points_there_is_no_picture() -> None:
    """An empty chart is empty, not a flat line at zero."""
    assert not _chart(_line((0.0, 0.5))).svg
    assert not _chart(_line((0.0, None), (30.0, None))).svg


def test_the_table_holds_the_same_numbers() -> None:
    """At most a dozen rows, the newest among them, with units and UTC."""
    chart = _chart(_line(*((30.0 * step, step / 100) for step in range(100))))
    assert chart.table.headers == ("time", "L1")
    assert len(chart.table.rows) <= 12
    assert chart.table.rows[-1] == ("00:49:30 UTC", units.share(0.99))
    assert chart.legend[0].latest == units.share(0.99)


@pytest.mark.parametrize("largest", [0.0, 0.003, 1.0, 7.0, 25.0, 99.0, 100.0, 12_345.0])
def test_a_linear_scale_ends_at_a_round_number_above(largest: float) -> None:
    """Never below the largest value, never more than two and a half times as much."""
    scale = linear_scale([largest])
    assert largest <= scale.high
    assert scale.high <= max(2.5 * largest, 1.0) or largest == 0.0


def test_a_log_scale_spans_microseconds_to_seconds() -> None:
    """Whole powers of ten around the values; what is infinite lies at the top."""
    scale = log_scale([4e-6, 0.2, inf])
    assert scale.ticks[0] == pytest.approx(1e-6)
    assert scale.ticks[-1] == pytest.approx(1.0)
    assert scale.y(inf) == scale.y(1.0)


def test_bars_past_the_limit_are_marked() -> None:
    """A bar that only begins past the limit is past it; the limit's line lies inside the bar that holds it."""
    svg = ElementTree.fromstring(age_chart(group="g", ranges=[(0, 10, 1), (10, 20, 2), (20, inf, 1)], limit_s=15))
    bars = list(svg.iter("rect"))
    assert ["past-limit" in bar.attrib["class"] for bar in bars] == [False, False, True]
    limit = svg.find("line")
    assert limit is not None
    assert float(bars[1].attrib["x"]) < float(limit.attrib["x1"]) < float(bars[2].attrib["x"])
