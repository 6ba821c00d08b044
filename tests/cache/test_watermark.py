"""The watermark as bytes, and bytes that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.cache.keys import names_of
from mlserve.cache.watermark import MOST_BYTES, Watermark, name_of, parse

MARK = Watermark(3, "731:739:733,735", 1_700_000_000.123456, "4711-9f3a2c")


@st.composite
def _watermarks(draw: st.DrawFn) -> Watermark:
    oldest = draw(st.integers(3, 2**32 - 100))
    running = sorted(draw(st.sets(st.integers(oldest, oldest + 50), max_size=5)))
    following = max([oldest, *[xid + 1 for xid in running]])
    snapshot = f"{oldest}:{following}:{','.join(map(str, running))}"
    moment = draw(st.integers(0, 2**32 * 1_000_000)) / 1_000_000
    return Watermark(draw(st.integers(0, 10**18 - 1)), snapshot, moment, draw(st.from_regex(r"\A[a-z0-9./-]{1,64}\Z")))


@given(_watermarks())
def test_a_watermark_comes_back_as_it_was(mark: Watermark) -> None:
    """Epoch, snapshot, moment to the microsecond, and relay."""
    assert parse(mark.pack()) == mark


def test_its_bytes_are_those_of_the_protocol() -> None:
    """Readable with any client of Redis, and by other languages."""
    assert MARK.pack() == b"3|731:739:733,735|1700000000.123456|4711-9f3a2c"
    assert (MARK.oldest_running, MARK.next_xid) == (731, 739)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"3",
        b"3|731:739:733,735|1700000000.123456",
        b"-3|731:739:|1700000000.123456|r",
        b"3|739:731:|1700000000.123456|r",  # ends before it begins
        b"3|731:739:730|1700000000.123456|r",  # not within
        b"3|731:739:739|1700000000.123456|r",
        b"3|731:739:735,733|1700000000.123456|r",  # not in order
        b"3|731:739:733,733|1700000000.123456|r",
        b"3|731:739:733,|1700000000.123456|r",
        b"3|0:739:|1700000000.123456|r",
        b"3|4294967296:4294967300:|1700000000.123456|r",  # Postgres never gives this number
        b"3|731:99999999999999999999:|1700000000.123456|r",
        b"3|731:739:|nan|r",
        b"3|731:739:|1e9|r",
        b"3|731:739:|1700000000.123456|r|r",
        b"3|731:739:|1700000000.123456|r\n",
        b"3|731:739:|1700000000.123456|r\xff",
        "3|\u0667\u0663\u0661:739:|1700000000.123456|r".encode(),
        b"9" * 19 + b"|731:739:|1700000000.123456|r",
        b"3|1:9000000:" + b",".join(b"%d" % xid for xid in range(1, MOST_BYTES // 4)) + b"|1700000000.123456|r",
    ],
)
def test_other_bytes_are_no_watermark(text: bytes) -> None:
    """Torn, out of order, out of bounds, too large."""
    assert parse(text) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise(text: bytes) -> None:
    """Whatever somebody puts there."""
    parse(text)


@given(st.binary(max_size=8), st.integers(0, 60), st.integers(0, 8))
def test_no_damage_raises(piece: bytes, place: int, cut: int) -> None:
    """A watermark with other bytes in it is a watermark or None."""
    text = MARK.pack()
    found = parse(text[:place] + piece + text[place + cut :])
    assert found is None or found.pack() == text[:place] + piece + text[place + cut :] or found.epoch >= 0


def test_it_lies_with_the_records_it_speaks_of() -> None:
    """The same hash tag, so the same slot of a Cluster."""
    names = names_of("customer", "C1", 16)
    tag = names.record[: names.record.index(b"}") + 1]
    partition = int(tag[tag.index(b"{") + 1 : -1])
    assert name_of(partition) == tag + b":wm"


@pytest.mark.parametrize(
    ("later", "earlier", "covered"),
    [
        ("10:10:", "10:10:", True),
        ("12:12:", "10:10:", True),
        ("9:9:", "10:10:", False),
        ("8:12:8", "10:10:", False),  # taken before 8 was committed, which the other one sees
        ("8:12:8", "8:10:8,9", True),
        ("8:12:8,11", "8:10:8", True),
        ("8:10:8", "8:10:8,9", True),
        ("8:10:8,9", "8:10:8", False),
    ],
)
def test_a_watermark_covers_another_if_it_sees_every_transaction_that_the_other_sees(
    later: str, earlier: str, covered: bool
) -> None:
    """Moments do not tell: a snapshot may be taken long after the moment that it is promised for."""
    assert Watermark(1, later, 0.0, "a").covers(Watermark(1, earlier, 5.0, "b")) is covered
    assert Watermark(2, later, 0.0, "a").covers(Watermark(1, earlier, 5.0, "b")) is covered
    assert not Watermark(1, later, 9.0, "a").covers(Watermark(2, earlier, 5.0, "b"))
