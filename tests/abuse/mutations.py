"""Bodies that are almost right: a good one, changed by a few random steps that know what JSON is made of."""

from collections.abc import Callable
from random import Random
from typing import Final

CORPUS: Final = (
    b'{"transaction_id":"t-1","occurred_at":"2026-11-23T11:59:00Z","customer_id":"c.1","merchant_id":"m:1","amount":12.5}',
    b'{"transaction_id":"t-1","occurred_at":"2026-11-23T11:59:00.123456+02:00","customer_id":"c.1","merchant_id":"m:1",'
    b'"amount":0,"currency":"USD","max_age_s":null}',
    b'{ "amount" : 1e2 , "max_age_s" : 0.0,\n"customer_id" : "\\u0063",\t"merchant_id":"m","transaction_id":"-",'
    b'"occurred_at":"1970-01-01T00:00:00Z"}',
    b'{"\\u0061mount":12.3456,"customer_id":"c","merchant_id":"m","transaction_id":"x","currency":"EUR",'
    b'"occurred_at":"2026-11-23T11:59:00-23:59"}',
)
_TOKENS: Final = rb"""{ } [ ] : , " \ \" \\ \u0061 \ud800 \udfff \u0000 / - + . e E 0 1 9 true false null NaN Infinity
    -Infinity 1e400 -0 -0.0 1e-400 0.00001 99999999999999999999 12:00 T Z +24:00 .. a "amount" "currency":"EUR",
    "max_age_s":0, {} [] "a":1, ,"a":1 ,,"""
_BYTES: Final = (
    b"\x00",
    b"\x7f",
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xe2\x82\xac",
    b" ",
    b"\x0b",
)
_PIECES: Final = (*_TOKENS.split(), *_BYTES)
_LARGEST: Final = 256 * 1024


def mutated(random: Random) -> bytes:
    """A body of the corpus after one to four steps, sometimes one that is near the largest that may come."""
    body = random.choice(CORPUS)
    for _ in range(random.randint(1, 4)):
        body = random.choice(_STEPS)(body, random)
    if random.random() < 0.02:
        body = _swollen(body, random)
    return body[:_LARGEST]


def _place(body: bytes, random: Random) -> int:
    return random.randint(0, len(body))


def _insert(body: bytes, random: Random) -> bytes:
    at = _place(body, random)
    return body[:at] + random.choice(_PIECES) * random.choice((1, 1, 1, 2, 17, 400)) + body[at:]


def _delete(body: bytes, random: Random) -> bytes:
    at = _place(body, random)
    return body[:at] + body[at + random.choice((1, 1, 2, 8, 40)) :]


def _replace(body: bytes, random: Random) -> bytes:
    at = _place(body, random)
    return body[:at] + random.choice(_PIECES) + body[at + 1 :]


def _flip(body: bytes, random: Random) -> bytes:
    if not body:
        return body
    at = random.randrange(len(body))
    return body[:at] + bytes((body[at] ^ 1 << random.randrange(8),)) + body[at + 1 :]


def _swap_members(body: bytes, random: Random) -> bytes:
    members = body.split(b",")
    random.shuffle(members)
    return b",".join(members)


def _repeat_a_member(body: bytes, random: Random) -> bytes:
    members = body.split(b",")
    return b",".join((*members[:-1], random.choice(members), members[-1]))


def _wrap(body: bytes, random: Random) -> bytes:
    before, after = random.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'"', b'"'), (b" ", b"\n"), (b"", body)))
    return before + body + after


def _new_value(body: bytes, random: Random) -> bytes:
    colons = [at for at, byte in enumerate(body) if byte == ord(":")]
    if not colons:
        return body
    at = random.choice(colons) + 1
    return body[:at] + random.choice(_PIECES) + random.choice((b",", b"}", b"")) + body[at:]


def _swollen(body: bytes, random: Random) -> bytes:
    at, piece = _place(body, random), random.choice(_PIECES)
    return body[:at] + piece * (_LARGEST // len(piece)) + body[at:]


_STEPS: Final[tuple[Callable[[bytes, Random], bytes], ...]] = (
    _insert,
    _insert,
    _delete,
    _replace,
    _flip,
    _swap_members,
    _repeat_a_member,
    _wrap,
    _new_value,
)
