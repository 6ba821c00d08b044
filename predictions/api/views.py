"""Scoring over HTTP: decode, take the time, make one call, answer."""

from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import msgspec
from django.http import HttpResponse
from rest_framework.request import Request

from mlserve.api import data_version
from mlserve.api.authentication import client_of
from mlserve.api.bodies import read_json_body
from mlserve.api.keyed_view import KeyedView
from mlserve.errors import ErrorCode, MlserveError
from predictions.api.decoding import decode_score_options, decode_score_request, decode_transaction_id
from predictions.api.model_list import list_models
from predictions.api.openapi import describe_models, describe_score, describe_stored_score
from predictions.scoring import score_transaction, stored_score

_JSON: Final = "application/json"
_encode = msgspec.json.Encoder().encode


class ScoreNotFound(MlserveError):
    code: ClassVar[ErrorCode] = ErrorCode.NOT_FOUND


class _ScoringView(KeyedView):
    required_scope = "score"
    parser_classes: tuple[Any, ...] = ()


class ScoresView(_ScoringView):
    reads_parameters = True

    @describe_score
    def post(self, request: Request) -> HttpResponse:
        """Scores the transaction, records it and remembers the decision under its id.

        The same body again gets the same answer, with `Idempotent-Replayed: true`; another body under the same id is
        a conflict. Unknown customers and merchants are scored with defaults, and the answer says so.
        `X-Data-Version` of earlier answers, sent back: no value that is older than what those knew.
        """
        body = read_json_body(request)
        now = datetime.now(UTC)
        scored = score_transaction(
            request=decode_score_request(body, now=now),
            options=decode_score_options(request.META["QUERY_STRING"]),
            client=_client_id(request),
            now=now.timestamp(),
            at_least=data_version.versions_sent(request),
        )
        headers = {
            "Server-Timing": ", ".join(f"{name};dur={ms:.2f}" for name, ms in scored.server_timing.items()),
            data_version.HEADER: data_version.token_of(scored.versions),
        }
        if scored.replayed:
            headers["Idempotent-Replayed"] = "true"
        return HttpResponse(scored.body, content_type=_JSON, headers=headers)


class StoredScoreView(_ScoringView):
    @describe_stored_score
    def get(self, _request: Request, transaction_id: str) -> HttpResponse:
        """The answer that was given, with the tier, age and allowed age of every feature, and each tier's part."""
        body = stored_score(decode_transaction_id(transaction_id))
        if body is None:
            raise ScoreNotFound(f"No transaction {transaction_id} was scored.")
        return HttpResponse(body, content_type=_JSON)


class ModelsView(_ScoringView):
    @describe_models
    def get(self, _request: Request) -> HttpResponse:
        """Every model version with its thresholds and metrics, and which one serves."""
        return HttpResponse(_encode(list_models()), content_type=_JSON)


def _client_id(request: Request) -> str:
    client = client_of(request)
    assert client is not None, "the view is closed to requests without a key"
    return client.id
