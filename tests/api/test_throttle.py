"""Limits over HTTP: what a client is told, and that one without a limit is told and charged nothing."""

import re
from collections.abc import Callable, Iterator

import pytest
from django.test import Client
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from mlserve.api import throttle
from mlserve.api.keys import issue_key
from mlserve.api.limit import Limit
from mlserve.api.lookup import ApiClient
from mlserve.api.throttle import RateLimited, charge
from mlserve.observability.metrics import RATE_LIMIT
from tests.fixtures.servers import ServerHandle


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    throttle.forget()


@pytest.fixture
def limited(db: None) -> Callable[..., Client]:
    def make(rate_per_s: int, burst: int | None = None, scope: str = "score") -> Client:
        key = issue_key(name="a test", scopes=[scope], rate_per_s=rate_per_s, burst=burst).key
        return Client(headers={"authorization": f"Bearer {key}"})

    return make


def _count(outcome: str) -> float:
    return float(RATE_LIMIT.labels(outcome)._value.get())


def test_a_client_is_told_what_it_has_left(limited: Callable[..., Client]) -> None:
    """In the fields of the draft, on answers and on errors alike."""
    client = limited(1, 10)
    first = client.get("/v1/models")
    assert first.status_code == 200
    assert first.headers["RateLimit-Policy"] == '"key";q=10;w=10'
    assert first.headers["RateLimit"] == '"key";r=9;t=1'
    wrong = client.get("/v1/models?no=1")
    assert wrong.status_code == 400
    assert wrong.headers["RateLimit"] == '"key";r=8;t=1'


def test_a_client_beyond_its_limit_is_refused(limited: Callable[..., Client]) -> None:
    """429, with the seconds until it is worth another try, and counted."""
    client = limited(1, 2)
    before = _count("refused")
    assert [client.get("/v1/models").status_code for _ in range(2)] == [200, 200]
    refused = client.get("/v1/models")
    assert refused.status_code == 429
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert refused.json()["code"] == "rate_limited"
    assert refused.headers["Retry-After"] == "1"
    assert refused.headers["RateLimit"] == '"key";r=0;t=1'
    assert _count("refused") == before + 1


def test_a_key_without_a_limit_is_told_nothing(client_with: Callable[..., Client]) -> None:
    """And nothing is kept for it."""
    response = client_with("score").get("/v1/models")
    assert response.status_code == 200
    assert "RateLimit" not in response.headers and "RateLimit-Policy" not in response.headers
    assert throttle._of_process is None


def test_the_settings_limit_keys_without_a_limit(client_with: Callable[..., Client], settings: object) -> None:
    """All that have none of their own."""
    settings.RATE_LIMIT_PER_S, settings.RATE_LIMIT_BURST = 1, 3  # type: ignore[attr-defined]
    client = client_with("score")
    assert [client.get("/v1/models").status_code for _ in range(4)] == [200, 200, 200, 429]


def test_who_may_not_is_not_charged(limited: Callable[..., Client]) -> None:
    """A key without the scope is told so, however often."""
    client = limited(1, 1, "debug")
    assert [client.get("/v1/models").status_code for _ in range(3)] == [403] * 3


def test_the_document_has_the_fields(limited: Callable[..., Client]) -> None:
    """Of a form that what is sent has, on each status that a charged key gets, and on no other."""
    client = limited(1, 2)
    document = client.get("/openapi.json").json()
    described = document["paths"]["/v1/models"]["get"]["responses"]
    forms = document["components"]["headers"]
    for path, status in [("/v1/models", 200), ("/v1/models?no=1", 400), ("/v1/models", 429)]:
        answered = client.get(path)
        assert answered.status_code == status
        for name, form in forms.items():
            if name == "WWW-Authenticate":
                continue
            assert (name in answered.headers) == (name in described[str(status)]["headers"])
            if name in answered.headers and "pattern" in form["schema"]:
                assert re.fullmatch(form["schema"]["pattern"], answered.headers[name])
    of_all = {"Request-Id", "Cache-Control"}
    assert all(set(described[status]["headers"]) == of_all for status in ("403", "406", "500"))
    assert set(described["401"]["headers"]) == {"WWW-Authenticate", *of_all}
    assert set(described["503"]["headers"]) == set(forms) - {"WWW-Authenticate"}
    assert set(document["paths"]["/healthz/ready"]["get"]["responses"]["503"]["headers"]) == {"Retry-After", *of_all}


def _request(limit: Limit | None) -> Request:
    request = Request(APIRequestFactory().post("/v1/scores"))
    request.user = ApiClient("mls_batch", "x", frozenset(), limit)  # type: ignore[assignment]
    return request


def test_a_batch_is_charged_for_all_that_it_holds(valkey_cache: ServerHandle) -> None:
    """All or nothing; more than the burst is never there, so no time is named."""
    charge(_request(Limit(1, 100)), units=60)
    with pytest.raises(RateLimited) as later:
        charge(_request(Limit(1, 100)), units=60)
    assert later.value.retry_after_s is not None and 15 <= later.value.retry_after_s <= 20
    with pytest.raises(RateLimited) as never:
        charge(_request(Limit(1, 100)), units=101)
    assert never.value.retry_after_s is None
    charge(_request(None), units=1000)


def _batch_of(items: int) -> dict[str, object]:
    item = {"occurred_at": "2026-01-05T14:30:00Z", "customer_id": "c", "merchant_id": "m", "amount": 1}
    return {"transactions": [{**item, "transaction_id": f"t-{number}"} for number in range(items)]}


@pytest.mark.parametrize("burst", [5, 40])
def test_a_batch_that_can_never_pass_says_so_and_costs_nothing(limited: Callable[..., Client], burst: int) -> None:
    """No `Retry-After` that would have it come again for ever; small bursts are held in Redis alone, large ones not."""
    client = limited(1, burst)
    for _ in range(3):
        refused = client.post("/v1/scores/batch", _batch_of(burst + 1), content_type="application/json")
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "Retry-After" not in refused.headers
        assert f"at most {burst}" in refused.json()["detail"]
    assert client.get("/v1/models").headers["RateLimit"].startswith(f'"key";r={burst - 1};')


def test_a_batch_that_is_refused_for_now_costs_nothing(limited: Callable[..., Client]) -> None:
    """It says when it can pass, and what is left stays for others."""
    client = limited(1, 5)
    assert [client.get("/v1/models").status_code for _ in range(2)] == [200, 200]
    for _ in range(3):
        refused = client.post("/v1/scores/batch", _batch_of(5), content_type="application/json")
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) in (1, 2)
    assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 200]


def test_a_batch_that_cannot_be_read_costs_one_unit(limited: Callable[..., Client]) -> None:
    """As any other request that is wrong, whatever is wrong with it."""
    client = limited(1, 20)
    for query, body in (
        ("", "{}"),
        ("", '{"transactions": []}'),
        ("?dry_run=1", _batch_of(5)),
        ("?no=1", _batch_of(5)),
    ):
        wrong = client.post(f"/v1/scores/batch{query}", body, content_type="application/json")
        assert wrong.status_code == 400
    assert client.get("/v1/models").headers["RateLimit"].startswith('"key";r=15;')


def test_without_valkey_the_limit_holds_in_this_process(
    limited: Callable[..., Client], valkey_cache: ServerHandle
) -> None:
    """Nothing fails and nothing waits longer than a time-out of L2; it is counted apart."""
    client = limited(1, 3)
    assert client.get("/v1/models").status_code == 200
    before = _count("alone_allowed"), _count("alone_refused")
    valkey_cache.freeze()
    assert [client.get("/v1/models").status_code for _ in range(3)] == [200, 200, 429]
    assert (_count("alone_allowed"), _count("alone_refused")) == (before[0] + 2, before[1] + 1)
