"""The filter of existing ids, its record, and when its "no" counts."""

import math
import sys
import threading
from collections.abc import Callable, Iterator

import msgspec
import pytest

from mlserve.cache import bloom_generation
from mlserve.cache.bloom import (
    FALSE_POSITIVE_RATE,
    HEADROOM,
    LEAST_CAPACITY,
    TRUST_S,
    Answer,
    BloomMembership,
    IdFilter,
    NullMembership,
    UnusableFilter,
)
from mlserve.cache.bloom_generation import Generation, Position, Record, decode, decode_header, encode, hash_key
from tests.fixtures.clock import ManualClock

KEY, SECRET = b"k" * 32, b"a secret of the project"


def _filter(*ids: str, key: bytes = KEY) -> IdFilter:
    made = IdFilter.for_count(len(ids), key)
    made.add_all(ids)
    return made


def _generation(name: str = "one") -> Generation:
    key = hash_key(name, SECRET)
    return Generation(
        name=name,
        built_at=1.7e9,
        position=Position("5-0", 7),
        counts={"customer": 2, "merchant": 1},
        filters={"customer": _filter("c1", "c2", key=key), "merchant": _filter("m1", key=key)},
    )


def _load(record: Record, secret: bytes = SECRET) -> Generation:
    return decode(decode_header(record.header, record.code, secret), record.body, secret)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def membership(clock: ManualClock) -> BloomMembership:
    """Knows the customer c1 and is vouched for now."""
    made = BloomMembership(clock)
    made.install({"customer": _filter("c1")})
    made.vouch(since=clock.monotonic())
    return made


def test_ids_that_exist_are_never_denied_and_few_others_pass() -> None:
    """100,000 ids in a filter sized for them: at half load nearly nothing passes, at full load at most 0.1 %."""
    count = 100_000
    held = _filter(*(f"C{number}" for number in range(count)))
    assert held.capacity == HEADROOM * count
    assert all(f"C{number}" in held for number in range(count))
    assert sum(f"x{number}" in held for number in range(count)) / count < FALSE_POSITIVE_RATE / 20
    held.add_all(f"later-{number}" for number in range(count))
    passed = sum(f"x{number}" in held for number in range(count))
    # Five standard deviations of a count that is 100 on average.
    assert passed <= count * FALSE_POSITIVE_RATE + 5 * math.sqrt(count * FALSE_POSITIVE_RATE)
    assert passed > 0


def test_what_passes_one_filter_does_not_pass_the_next() -> None:
    """The hash is keyed: ids that were found to pass are worth nothing after a rotation."""
    crowded = IdFilter(500, KEY)
    crowded.add_all(f"C{number}" for number in range(1_000))
    passing = [f"x{number}" for number in range(20_000) if f"x{number}" in crowded]
    assert len(passing) > 100
    rotated = IdFilter(500, b"o" * 32)
    rotated.add_all(f"C{number}" for number in range(1_000))
    assert sum(entity_id in rotated for entity_id in passing) < len(passing) / 10


def test_the_smallest_filter_has_room() -> None:
    """A service without customers gets some before the next build."""
    assert _filter().capacity == LEAST_CAPACITY


def test_any_text_is_an_id() -> None:
    """Also what no client may send: empty, long, no valid Unicode."""
    strange = ["", "é", "\x00", "\ud800", "x" * 100_000]
    held = _filter(*strange)
    assert all(entity_id in held for entity_id in strange)


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    """They take turns after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_hasty_threads")
def test_adding_and_asking_at_once_is_safe() -> None:
    """The library refuses a look-up during an addition; none ever meets one."""
    held, start, errors = _filter("c1"), threading.Barrier(4), []

    def work(what: Callable[[int], object]) -> None:
        start.wait()
        try:
            for number in range(20_000):
                what(number)
        except BaseException as error:
            errors.append(error)

    def ask(_number: int) -> None:
        assert "c1" in held

    def add(number: int) -> None:
        held.add(f"new-{number}")

    threads = [threading.Thread(target=work, args=(what,)) for what in (ask, add, ask, add)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_without_filters_everything_may_exist(clock: ManualClock) -> None:
    """New processes, and those that never have any."""
    assert NullMembership().may_exist("customer", "nobody")
    membership = BloomMembership(clock)
    assert membership.may_exist("customer", "nobody") and not membership.usable
    membership.vouch(since=clock.monotonic())
    assert membership.may_exist("customer", "nobody")


def test_a_filter_that_is_vouched_for_says_no(membership: BloomMembership) -> None:
    """Only for kinds that it has."""
    assert membership.may_exist("customer", "c1")
    assert not membership.may_exist("customer", "nobody")
    assert membership.may_exist("prediction", "nobody")


def test_trust_ends_by_itself(membership: BloomMembership, clock: ManualClock) -> None:
    """Whoever no longer hears of new ids must not deny them."""
    clock.advance(TRUST_S - 0.01)
    assert not membership.may_exist("customer", "nobody")
    clock.advance(0.01)
    assert membership.may_exist("customer", "nobody")
    membership.vouch(since=clock.monotonic())
    assert not membership.may_exist("customer", "nobody")


def test_suspended_is_unusable_whoever_vouches(membership: BloomMembership, clock: ManualClock) -> None:
    """Until filters are installed."""
    membership.suspend()
    assert membership.may_exist("customer", "nobody")
    membership.vouch(since=clock.monotonic())
    assert membership.may_exist("customer", "nobody")


def test_answers_are_counted(membership: BloomMembership, clock: ManualClock) -> None:
    """What the source says of an id counts only while the filter had a say."""
    membership.may_exist("customer", "nobody")
    membership.observed("customer", "c1", exists=True)
    membership.observed("customer", "c9", exists=False)
    membership.observed("prediction", "p", exists=False)
    clock.advance(TRUST_S)
    membership.may_exist("customer", "nobody")
    membership.observed("customer", "c1", exists=True)
    assert membership.answers == {
        ("customer", Answer.NO): 1,
        ("customer", Answer.MAYBE_EXISTS): 1,
        ("customer", Answer.MAYBE_ABSENT): 1,
        ("customer", Answer.UNUSABLE): 1,
    }


@pytest.mark.parametrize(
    "data", [b"", b"\x09" + bytes(7), bytes(64), b"\xff" * 64, (65).to_bytes(8, "little") + bytes(64)]
)
def test_bytes_on_which_the_library_would_panic_or_hang_are_refused(data: bytes) -> None:
    """No header, no bits, no hash at all, more hashes than a look-up can make."""
    with pytest.raises(UnusableFilter):
        IdFilter.load(data, capacity=10, hash_key=KEY)


def test_a_generation_survives_its_record() -> None:
    """With its position, counts and filters."""
    loaded = _load(encode(_generation(), SECRET))
    assert (loaded.name, loaded.built_at, loaded.position) == ("one", 1.7e9, Position("5-0", 7))
    assert loaded.counts == {"customer": 2, "merchant": 1}
    assert "c1" in loaded.filters["customer"] and "m1" in loaded.filters["merchant"]
    assert "c1" not in loaded.filters["merchant"]
    loaded.filters["customer"].add("c3")
    assert "c3" in loaded.filters["customer"]


@pytest.mark.parametrize("part", ["header", "code", "body"])
def test_a_record_with_one_bit_changed_is_refused(part: str) -> None:
    """A bit of the body that is lost would deny somebody."""
    record = encode(_generation(), SECRET)
    data = bytearray(getattr(record, part))
    data[len(data) // 2] ^= 1
    with pytest.raises(UnusableFilter):
        _load(msgspec.structs.replace(record, **{part: bytes(data)}))


def test_only_holders_of_the_secret_write_records() -> None:
    """Whoever may write to Redis cannot deny customers; what was written with another secret is refused."""
    with pytest.raises(UnusableFilter, match="MLSERVE_SECRET_KEY"):
        _load(encode(_generation(), b"another secret"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layout": 99}, "layout 99"),
        ({"library": "rbloom 0.0.1"}, r"rbloom 0\.0\.1"),
        ({"position": {"id": "x", "added": 1}}, "position"),
        ({"filters": [{"kind": "customer", "count": 1, "capacity": 1, "bytes": 2**40}]}, "bytes"),
        ({"filters": [{"kind": "customer", "count": 1, "capacity": 1, "bytes": -1}]}, "bytes"),
        ({"built_at": "now"}, "cannot be read"),
    ],
)
def test_headers_that_cannot_be_ours_are_refused(change: dict[str, object], named: str) -> None:
    """Also with a good code: an older or newer version of this project may have written them."""
    header = msgspec.json.encode(msgspec.json.decode(encode(_generation(), SECRET).header) | change)
    with pytest.raises(UnusableFilter, match=named):
        decode_header(header, bloom_generation._code(header, SECRET), SECRET)


def test_a_header_without_end_is_not_read() -> None:
    """Nor hashed."""
    with pytest.raises(UnusableFilter, match="at most"):
        decode_header(b"x" * 5_000, b"", SECRET)
