"""What a client says that it takes, and that who sends what nothing takes is told so by the right status."""

from collections.abc import Callable

import pytest
from django.test import Client

OPENAPI = "application/vnd.oai.openapi+json"


@pytest.mark.parametrize(
    "accept", ["text/plain", "text/*", "*/*", "text/plain; version=0.0.4", "application/json, text/plain;q=0.5"]
)
def test_metrics_are_text_to_who_takes_text(db: None, accept: str) -> None:
    """Scrapers and people ask for it by its name."""
    answered = Client(headers={"accept": accept}).get("/metrics")
    assert answered.status_code == 200
    assert answered.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("accept", "served"),
    [(OPENAPI, OPENAPI), ("*/*", OPENAPI), ("application/json", "application/json"), ("application/*", OPENAPI)],
)
def test_the_document_is_served_under_its_own_type_and_as_json(accept: str, served: str) -> None:
    """Whichever is asked for; its own where both will do."""
    answered = Client(headers={"accept": accept}).get("/openapi.json")
    assert (answered.status_code, answered.headers["Content-Type"]) == (200, served)


@pytest.mark.parametrize(("path", "served"), [("/metrics", "text/plain"), ("/openapi.json", OPENAPI)])
def test_what_is_served_is_named_where_it_is_not_wanted(db: None, path: str, served: str) -> None:
    """406, with the type that there is."""
    refused = Client(headers={"accept": "image/png"}).get(path)
    assert (refused.status_code, refused.json()["code"]) == (406, "not_acceptable")
    assert served in refused.json()["detail"]


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["/", "/favicon.ico"])
def test_what_only_leads_elsewhere_takes_nothing(method: str, path: str) -> None:
    """Without a key it is 401, as everywhere; with one the methods are named."""
    client = Client(enforce_csrf_checks=True)
    nobody = client.generic(method, path)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
    assert nobody.headers["WWW-Authenticate"].startswith("Bearer")
    somebody = client.generic(method, path, headers={"authorization": "Bearer x"})
    assert (somebody.status_code, somebody.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/policies", "/v1/scores/t-1"])
def test_a_malformed_data_version_is_refused_everywhere(client_with: Callable[..., Client], path: str) -> None:
    """Also where it would say nothing: a client that garbles its tokens learns of it."""
    refused = client_with("score").get(path, headers={"x-data-version": ","})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_parameter")
    assert refused.json()["errors"][0]["parameter"] == "X-Data-Version"


def test_the_document_leaves_room_for_new_values() -> None:
    """Codes and outcomes are open; and what a page fills in by itself records and labels nothing."""
    document = Client().get("/openapi.json").json()
    for name in ("ErrorCode", "LabelOutcome", "OnMissingSource"):
        assert {"type": "string", "description": "New values may come."} in document["components"]["schemas"][name][
            "anyOf"
        ]
    assert document["components"]["schemas"]["ScoreRequest"]["properties"]["currency"]["type"] == ["string", "null"]
    scoring = document["paths"]["/v1/scores"]["post"]
    (dry_run,) = [each for each in scoring["parameters"] if each["name"] == "dry_run"]
    assert [example["value"] for example in dry_run["examples"].values()] == ["true"]
    scored = {
        example["value"]["transaction_id"]
        for example in scoring["requestBody"]["content"]["application/json"]["examples"].values()
    }
    labelling = document["paths"]["/v1/labels"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    labelled = {label["transaction_id"] for example in labelling.values() for label in example["value"]["labels"]}
    assert not scored & labelled
    assert {"Server-Timing", "Idempotent-Replayed", "X-Data-Version", "Request-Id"} <= set(
        scoring["responses"]["200"]["headers"]
    )
