"""The OpenAPI document: valid, complete, and its examples work."""

import json
import re
from datetime import UTC, datetime
from html import unescape
from io import StringIO
from typing import Any

import jsonschema
import msgspec
import pytest
from django.core.management import call_command
from django.test import Client

from mlserve.errors import MlserveError
from predictions.api.decoding import (
    MOST_LABELS,
    MOST_TRANSACTIONS,
    decode_labels,
    decode_score_batch,
    decode_score_request,
)
from predictions.api.lists import BatchResponse, LabelsResponse
from predictions.messages import ScoreResponse

METHODS = ("get", "post", "put", "patch", "delete")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    out = StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", "--format", "openapi-json", stdout=out)
    loaded: dict[str, Any] = json.loads(out.getvalue())
    return loaded


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [item[method] for item in document["paths"].values() for method in METHODS if method in item]


def test_the_document_is_valid_and_served(document: dict[str, Any], client: Client) -> None:
    """What the command validates is what the address serves, and it is OpenAPI 3.1."""
    assert document["openapi"].startswith("3.1")
    assert json.loads(client.get("/openapi.json").content) == document
    assert set(document["paths"]) == {
        "/v1/scores",
        "/v1/scores/batch",
        "/v1/labels",
        "/v1/scores/{transaction_id}",
        "/v1/features/{entity}/{entity_id}",
        "/v1/models",
        "/v1/policies",
        "/healthz/live",
        "/healthz/ready",
    }


def test_every_tag_is_described(document: dict[str, Any]) -> None:
    """The page shows operations by tag, in the order of the descriptions; a tag without one comes last and bare."""
    described = {tag["name"] for tag in document["tags"] if tag["description"]}
    assert {tag for operation in operations(document) for tag in operation["tags"]} == described


def test_the_page_has_nothing_inline(client: Client) -> None:
    """So that it works under a policy without `unsafe-inline`; all its files are served by this service."""
    response = client.get("/docs")
    page = response.content.decode()
    assert "unsafe-inline" not in response.headers["Content-Security-Policy"]
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 5
    for address in addresses:
        answer = client.get(unescape(address))
        assert answer.status_code == 200, address
    assert "SwaggerUIBundle" in client.get("/docs?script=").content.decode()


def test_moments_are_said_to_be_moments(document: dict[str, Any]) -> None:
    """Clients that are made from the document read them as such, not as strings."""
    found = 0
    for schema in document["components"]["schemas"].values():
        for name, value in schema.get("properties", {}).items():
            if name == "at" or name.endswith(("_at", "as_of")):
                branches = value.get("anyOf", [value])
                assert any(branch.get("format") == "date-time" for branch in branches), (schema["title"], name)
                found += 1
    assert found >= 7


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    """Every `$ref` names a schema of the document."""
    text = json.dumps(document)
    named = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert named <= set(document["components"]["schemas"])


def test_what_is_taken_is_stated(document: dict[str, Any]) -> None:
    """Bodies may not be left out, and ids in paths have the pattern of those in bodies."""
    assert document["paths"]["/v1/scores"]["post"]["requestBody"]["required"] is True
    stated = document["components"]["schemas"]["ScoreRequest"]["properties"]["transaction_id"]
    limits = {name: stated[name] for name in ("type", "minLength", "maxLength", "pattern")}
    ids = [
        parameter["schema"]
        for operation in operations(document)
        for parameter in operation.get("parameters", [])
        if parameter["name"] in ("transaction_id", "entity_id")
    ]
    assert len(ids) == 3
    assert limits["pattern"].endswith("$"), "what Python spells as \\\\Z is a letter to others"
    assert all({name: schema.get(name) for name in limits} == limits for schema in ids)
    assert [bool(re.search(limits["pattern"], text)) for text in ("..", "..a", "a", "a b")] == [
        False,
        True,
        True,
        False,
    ]


def test_examples_fit_their_schemas(document: dict[str, Any]) -> None:
    """Those of requests and those of answers, problems included."""
    checked = 0
    for operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}) for body in bodies):
            for media in content.values():
                schema = {**media["schema"], "components": document["components"]}
                for example in media["examples"].values():
                    jsonschema.validate(example["value"], schema)
                    checked += 1
    assert checked > 40


def test_examples_of_scores_pass_the_decoder(document: dict[str, Any]) -> None:
    """They can be sent as they stand."""
    media = document["paths"]["/v1/scores"]["post"]["requestBody"]["content"]["application/json"]
    for example in media["examples"].values():
        body = json.dumps(example["value"]).encode()
        assert decode_score_request(body, now=datetime(2026, 11, 23, tzinfo=UTC))
    answers = document["paths"]["/v1/scores"]["post"]["responses"]["200"]["content"]["application/json"]
    for example in answers["examples"].values():
        assert msgspec.convert(example["value"], ScoreResponse)


def test_examples_of_lists_pass_their_decoders(document: dict[str, Any]) -> None:
    """As they stand, every item of them; and the answers are what the types say."""
    now = datetime(2026, 11, 23, tzinfo=UTC)
    for path, decode, answered in (
        ("/v1/scores/batch", decode_score_batch, BatchResponse),
        ("/v1/labels", decode_labels, LabelsResponse),
    ):
        operation = document["paths"][path]["post"]
        for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
            items = decode(json.dumps(example["value"]).encode(), now=now)
            assert items and not [item for item in items if isinstance(item, MlserveError)]
        for example in operation["responses"]["200"]["content"]["application/json"]["examples"].values():
            assert msgspec.convert(example["value"], answered)


def test_limits_of_lists_are_stated(document: dict[str, Any]) -> None:
    """Those that the decoders hold to."""
    schemas = document["components"]["schemas"]
    for schema, member, most in (
        ("BatchRequest", "transactions", MOST_TRANSACTIONS),
        ("LabelsRequest", "labels", MOST_LABELS),
    ):
        stated = schemas[schema]["properties"][member]
        assert (stated["minItems"], stated["maxItems"]) == (1, most)


def test_every_operation_says_how_it_fails(document: dict[str, Any]) -> None:
    """As problem details; behind a key also with 401 and 403."""
    for operation in operations(document):
        problems = {
            status
            for status, response in operation["responses"].items()
            if "application/problem+json" in response["content"]
        }
        assert {"400", "500"} <= problems
        if {"ApiKey": []} in operation["security"]:
            assert {"401", "403"} <= problems
        assert operation["summary"] and operation["description"]
