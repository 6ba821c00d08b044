"""Tokens of versions: what they carry comes back, and nothing else is believed."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from hashlib import blake2b

import msgspec
import pytest
from django.conf import settings
from django.test import RequestFactory, override_settings
from hypothesis import given
from hypothesis import strategies as st

from mlserve.api.data_version import HEADER, MOST_CHARACTERS, read_header, token_of, versions_sent
from mlserve.api.parameters import InvalidParameter
from mlserve.cache.keys import Key
from mlserve.errors import ErrorCode

ACTIVITY, RISK = Key("customer", "C1", "customer_activity"), Key("merchant", "M1", "merchant_risk")
SEEN = {ACTIVITY: 41, RISK: 2**62}


def _refused(header: str) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as caught:
        read_header(header)
    assert caught.value.code is ErrorCode.INVALID_PARAMETER
    assert [error.parameter for error in caught.value.errors] == [HEADER]
    return caught.value


def _bytes_of(token: str) -> bytes:
    return urlsafe_b64decode(token + "=" * (-len(token) % 4))


def _text_of(sealed: bytes) -> str:
    return urlsafe_b64encode(sealed).decode().rstrip("=")


def test_a_token_comes_back_as_it_went() -> None:
    """Also one that names nothing, which an answer about strangers carries."""
    assert read_header(token_of(SEEN)) == SEEN
    assert read_header(token_of({})) == {}


def test_a_token_can_stand_in_a_header() -> None:
    """Of the letters of base64url alone: no comma, no space, nothing to quote."""
    assert set(token_of(SEEN)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_of_several_tokens_the_newest_version_of_each_key_counts() -> None:
    """In any order, with spaces and empty elements as lists in headers may have them."""
    older, newer = token_of({ACTIVITY: 40, RISK: 7}), token_of({ACTIVITY: 41})
    expected = {ACTIVITY: 41, RISK: 7}
    assert read_header(f"{older}, {newer}") == read_header(f" {newer},,{older} ,") == expected


def test_without_a_header_nothing_was_seen() -> None:
    """With one it is what it names."""
    assert versions_sent(RequestFactory().post("/")) is None
    assert versions_sent(RequestFactory().post("/", headers={HEADER: token_of(SEEN)})) == SEEN


def test_every_byte_of_a_token_is_signed() -> None:
    """Whichever is changed, or left out at the end, the token is refused."""
    sealed = _bytes_of(token_of(SEEN))
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        _refused(_text_of(bytes(changed)))
    for length in range(1, len(sealed)):
        _refused(_text_of(sealed[:length]))


def test_a_token_with_something_in_between_is_refused() -> None:
    """Decoders that skip what is no base64 would take it."""
    token = token_of(SEEN)
    _refused(f"{token[:5]}!!!!{token[5:]}")
    _refused(f"{token[:5]}    {token[5:]}")


def test_a_signature_without_the_key_is_none() -> None:
    """Neither an unkeyed digest nor one under the plain secret."""
    payload = msgspec.msgpack.encode([("customer", "C1", "customer_activity", 2**62)])
    for digest in (
        blake2b(payload, digest_size=16),
        blake2b(payload, digest_size=16, key=settings.SECRET_KEY.encode()[:64]),
    ):
        assert "not signed" in str(_refused(_text_of(digest.digest() + payload)))


def test_one_bad_token_among_good_ones_is_refused() -> None:
    """A client that garbles its tokens learns of it."""
    _refused(f"{token_of(SEEN)},{token_of(SEEN)[:-2]}")


@pytest.mark.parametrize(
    "header", ["x", "a b", "Zm9v+/==", "é", "\x00", "{}", "=", "null", "A" * 22, "", " ", ",", " , ,"]
)
def test_what_is_no_token_is_refused(header: str) -> None:
    """With a word about what to do."""
    assert "leave the header out" in str(_refused(header))


def test_a_header_that_is_too_long_is_not_looked_at() -> None:
    """Bounded before anything is decoded; the limit holds several tokens of the longest ids."""
    longest = token_of(
        {Key(kind, "x" * 64, f"{kind}_{name}"): 2**63 - 1 for kind in ("customer", "merchant") for name in "abc"}
    )
    assert 4 * len(longest) < MOST_CHARACTERS
    at_most = token_of(SEEN) + "," * (MOST_CHARACTERS - len(token_of(SEEN)))
    assert read_header(at_most) == SEEN
    assert "4,097 characters" in str(_refused(at_most + ","))


def test_a_secret_that_was_replaced_is_known_for_as_long_as_the_settings_say() -> None:
    """Django's own list of earlier secrets counts; after it, clients leave the old token out."""
    token, old = token_of(SEEN), "only-for-tests-" + "x" * 50
    with override_settings(SECRET_KEY="another" * 10, SECRET_KEY_FALLBACKS=[old]):
        assert read_header(token) == SEEN
        assert token_of(SEEN) != token
    with override_settings(SECRET_KEY="another" * 10):
        _refused(token)


@given(st.one_of(st.text(), st.text("ABCDEFabcdef0123456789-_, =", max_size=200)))
def test_any_text_is_a_token_or_is_refused(header: str) -> None:
    """Nothing else comes out of it."""
    with suppress(InvalidParameter):
        assert read_header(header) == {}
