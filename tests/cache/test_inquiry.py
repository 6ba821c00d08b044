"""Questions and answers on the bus: what a process tells, and bytes that somebody else put there."""

import msgspec
import pytest

from mlserve.cache import bus, inquiry
from mlserve.cache.entry import Entry
from mlserve.cache.inquiry import Answer, HeldCopy, Question, answers, digest_of, pack_answer, pack_keys, read_answer
from mlserve.cache.keys import Key

KEY, OTHER = Key("merchant", "m1", "g"), Key("merchant", "m2", "g")
ID = b"0123456789abcdef" * 2
_packed = msgspec.msgpack.encode


def test_a_process_tells_what_it_holds() -> None:
    """Without the values; keys that it does not hold are left out."""
    entry = Entry(7, 1.0, 2.0, (3.0, 4.0), 0.0, 5.0)
    (held,) = answers({KEY: entry}.get, [KEY, OTHER], vouched_of=lambda _: 6.0)
    assert held.key == KEY
    assert held.as_entry() == Entry(7, 1.0, 2.0, (), 0.0, 6.0)
    assert held.digest == digest_of((3.0, 4.0))


@pytest.mark.parametrize(("own", "heard", "told"), [(5.0, 6.0, 6.0), (5.0, 4.0, 5.0), (0.0, 6.0, 0.0)])
def test_who_vouches_for_a_copy(own: float, heard: float, told: float) -> None:
    """The stream of batches, but only for what somebody vouched for when it was taken in."""
    (held,) = answers({KEY: Entry(7, 1.0, 2.0, None, 0.0, own)}.get, [KEY], vouched_of=lambda _: heard)
    assert held.vouched_at == told and held.negative and held.as_entry().values is None


def test_what_vouches_is_read_before_the_copy() -> None:
    """A message in between takes the copy away and moves the moment on; the new moment must not speak of the copy."""
    order: list[str] = []

    def peek(_: Key) -> None:
        order.append("copy")

    def vouched_of(_: Key) -> float:
        order.append("moment")
        return 1.0

    answers(peek, [KEY], vouched_of=vouched_of)
    assert order == ["moment", "copy"]


def test_a_question_comes_through_the_stream() -> None:
    """As an entry of the same stream as the batches."""
    assert bus.read([b"asked", ID, b"keys", pack_keys([KEY, OTHER])]) == Question(ID, (KEY, OTHER))


@pytest.mark.parametrize(
    "fields",
    [
        [b"asked", b"short", b"keys", pack_keys([KEY])],
        [b"asked", b"*" * 32, b"keys", pack_keys([KEY])],
        [b"asked", ID, b"keys", b"\xff" * 50],
        [b"asked", ID, b"keys", _packed([["only", "two"]])],
        [b"asked", ID, b"keys", b"\x91" * 100_000],
        [b"asked", ID, b"keys", pack_keys([KEY] * (inquiry.MOST_KEYS + 1))],
    ],
)
def test_a_question_that_is_none_is_neither_answered_nor_a_gap(fields: list[bytes]) -> None:
    """No batch is missing because of it."""
    assert bus.read(fields) == ()


def test_an_answer_comes_back_as_it_was_given() -> None:
    """Every field of every copy."""
    answer = Answer("host:1", 9.0, [HeldCopy("merchant", "m1", "g", 2**63, 1.0, 2.0, 3.0, False, b"d" * 16)])
    assert read_answer(pack_answer(answer)) == answer


def _held(**changes: object) -> bytes:
    fields = {"kind": "k", "id": "i", "group": "g", "version": 1, "as_of": 1.0, "written_at": 1.0, "vouched_at": 1.0}
    return _packed(["p", 1.0, [[*(fields | changes).values(), False, b"d"]]])


@pytest.mark.parametrize(
    "reply",
    [
        None,
        7,
        b"",
        b"\xff" * 40,
        b"\x91" * 100_000,
        _packed(["p", float("nan"), []]),
        _packed(["p", 1.0, [["k", "i"]]]),
        _held(version=-1),
        _held(as_of=float("inf")),
        _held(vouched_at=float("nan")),
        _held(version="1"),
        _packed(["p" * (inquiry.MOST_ANSWER_BYTES + 1), 1.0, []]),
    ],
)
def test_an_answer_that_no_process_gave_is_none(reply: object) -> None:
    """Too large, torn, of other types, or with moments that are none."""
    assert read_answer(reply) is None


def test_digests_tell_any_two_lists_of_numbers_apart() -> None:
    """To the last bit, and from "nothing there"."""
    kinds = [None, (), (0.0,), (-0.0,), (0.0, 0.0), (1.0,), (1.0 + 2**-52,)]
    assert len({digest_of(values) for values in kinds}) == len(kinds)
