"""What the schema-driven client has to know that an OpenAPI document cannot say. That client loads it.

Each check is one of the client's own, save for what the service does on purpose and its document says in words.
"""

import json
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, Response
from schemathesis.core.failures import AcceptedNegativeData
from schemathesis.openapi.checks import AllowHeaderMismatch, EnsureResourceAvailability, RejectedPositiveData
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    ensure_resource_availability,
    negative_data_rejection,
    positive_data_acceptance,
)

REPLACED = (
    "positive_data_acceptance",
    "negative_data_rejection",
    "allow_header_conformance",
    "ensure_resource_availability",
)
_BEYOND_THE_SCHEMA = ("before 1970", "more than a day ahead", "too exact: at most")
"""What the document says in words: the window of moments hangs on the clock, and no float is a multiple of 0.0001."""
_OF_THE_DATA = ("transaction_conflict", "not_found")
"""An id that was used before; a label for a transaction that nobody knows."""


@schemathesis.check
def accepts_what_the_document_allows(ctx: CheckContext, response: Response, case: Case) -> None:
    """Also object by object, where a list was sent."""
    try:
        positive_data_acceptance(ctx, response, case)
    except RejectedPositiveData:
        if not _is_beyond_the_schema(json.loads(response.content)):
            raise
    if case.meta is not None and case.meta.generation.mode.is_positive:
        for problem in _problems_in_place(response):
            assert _is_beyond_the_schema(problem), f"refused in its place although the schema allows it: {problem}"


@schemathesis.check
def refuses_what_the_document_forbids(ctx: CheckContext, response: Response, case: Case) -> None:
    """A list that is too long with 413, and a wrong object of a list in its place.

    A list of one empty string is spelt `include=`, as the empty list is: nobody can tell them apart.
    """
    try:
        negative_data_rejection(ctx, response, case)
    except AcceptedNegativeData:
        means_nothing = (case.query or {}).get("include") in ("", [""])
        if response.status_code != 413 and not _problems_in_place(response) and not means_nothing:
            raise


@schemathesis.check
def allows_what_the_document_names(ctx: CheckContext, response: Response, case: Case) -> None:
    """And GET /v1/scores/batch, because a transaction may be called that."""
    try:
        allow_header_conformance(ctx, response, case)
    except AllowHeaderMismatch as mismatch:
        if (case.operation.path, mismatch.undocumented_methods) != ("/v1/scores/batch", ["GET"]):
            raise


@schemathesis.check
def has_what_it_was_given(ctx: CheckContext, response: Response, case: Case) -> None:
    """A score can be asked for after it was given, unless that was a dry run, which stores nothing."""
    try:
        ensure_resource_availability(ctx, response, case)
    except EnsureResourceAvailability:
        scored = ctx.internals.find_parent(case_id=case.id)
        if scored is None or "true" not in str((scored.query or {}).get("dry_run")):
            raise


def _problems_in_place(response: Response) -> list[dict[str, Any]]:
    if response.status_code != 200:
        return []
    results = json.loads(response.content).get("results", ())
    return [result["problem"] for result in results if "problem" in result]


def _is_beyond_the_schema(problem: dict[str, Any]) -> bool:
    said = [any(words in error["detail"] for words in _BEYOND_THE_SCHEMA) for error in problem.get("errors", ())]
    return problem["code"] in _OF_THE_DATA or (bool(said) and all(said))
