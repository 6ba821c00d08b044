"""Scoring over HTTP: decode, take the time, make one call, answer."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import msgspec
from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request

from mlserve.api import data_version
from mlserve.api.authentication import client_of
from mlserve.api.bodies import read_json_body
from mlserve.api.keyed_view import KeyedView
from mlserve.api.problems import problem_of_item
from mlserve.api.throttle import charge
from mlserve.errors import STATUS_OF, ErrorCode, MlserveError
from predictions.api.decoding import (
    asks_for_reasons,
    decode_labels,
    decode_score_options,
    decode_score_request,
    decode_transaction_id,
    decode_transactions,
    split_score_batch,
)
from predictions.api.lists import BatchResponse, BatchResult, LabelResult, LabelsResponse
from predictions.api.model_list import list_models
from predictions.api.openapi import (
    describe_labels,
    describe_models,
    describe_score,
    describe_score_batch,
    describe_stored_score,
)
from predictions.batch import score_batch
from predictions.explaining import stored_score_with_reasons
from predictions.labels import take_labels
from predictions.scoring import score_transaction, stored_score

_JSON: Final = "application/json"
_encode = msgspec.json.Encoder().encode


class ScoreNotFound(MlserveError):
    code: ClassVar[ErrorCode] = ErrorCode.NOT_FOUND


class _ScoringView(KeyedView):
    required_scope = "score"
    parser_classes: tuple[Any, ...] = ()


class ScoresView(_ScoringView):
    database_s = None
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
            options=decode_score_options(request._request.META["QUERY_STRING"]),
            client=_client_id(request),
            now=now.timestamp(),
            at_least=self.versions_sent,
        )
        headers = {
            "Server-Timing": _server_timing(scored.server_timing),
            data_version.HEADER: data_version.token_of(scored.versions),
        }
        if scored.replayed:
            headers["Idempotent-Replayed"] = "true"
        return HttpResponse(scored.body, content_type=_JSON, headers=headers)


class ScoreBatchView(_ScoringView):
    database_s = None
    reads_parameters = True

    def check_throttles(self, request: Request) -> None:
        """Charged are all of its items at once, when they are counted: what a limit refuses costs nothing."""

    @describe_score_batch
    def post(self, request: Request) -> HttpResponse:
        """Scores up to 100 transactions as `POST /v1/scores` scores one, in far less time than one by one.

        Each result says what a call of its own would have: its status with the answer, or with the problem. One that is
        wrong harms no other. Of one customer's transactions a later one has the earlier ones in its windows. The
        `X-Data-Version` of each stands in its result, since the header could not hold all of them.
        """
        try:
            items = split_score_batch(read_json_body(request))
            options = decode_score_options(request._request.META["QUERY_STRING"])
        except MlserveError:
            charge(request)
            raise
        charge(request, units=len(items))
        now = datetime.now(UTC)
        scored = score_batch(
            requests=decode_transactions(items, now=now),
            options=options,
            client=_client_id(request),
            now=now.timestamp(),
            at_least=self.versions_sent,
        )
        results = [
            BatchResult(status=int(STATUS_OF[item.code]), problem=problem_of_item(request, item))
            if isinstance(item, MlserveError)
            else BatchResult(
                status=200,
                answer=item.response,
                replayed=item.replayed,
                data_version=data_version.token_of(item.versions),
            )
            for item in scored.items
        ]
        headers = {"Server-Timing": _server_timing(scored.server_timing)}
        return HttpResponse(_encode(BatchResponse(results)), content_type=_JSON, headers=headers)

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        """A transaction may be called `batch`."""
        charge(request)
        return StoredScoreView().get(request, "batch")


class StoredScoreView(_ScoringView):
    reads_parameters = True

    @describe_stored_score
    def get(self, request: Request, transaction_id: str) -> HttpResponse:
        """The answer that was given, with the tier, age and allowed age of every feature, and each tier's part.

        An approval has no reasons unless they were asked for; `include=reasons` computes them now, from the values that
        the model got then.
        """
        find = stored_score_with_reasons if asks_for_reasons(request._request.META["QUERY_STRING"]) else stored_score
        body = find(decode_transaction_id(transaction_id))
        if body is None:
            raise ScoreNotFound(f"No transaction {transaction_id} was scored.")
        return HttpResponse(body, content_type=_JSON)


class LabelsView(_ScoringView):
    required_scope = "label"

    @describe_labels
    def post(self, request: Request) -> HttpResponse:
        """Takes in what became of up to 1,000 earlier transactions: fraud, or not.

        The same again changes nothing, whatever came between: the same `report_id`, or without one the same contents. A
        later report corrects an earlier one, whose history is kept; one that is older
        than the report in force is kept and changes nothing. Features know it from the moment of its arrival on.
        """
        body = read_json_body(request)
        now = datetime.now(UTC)
        outcomes = take_labels(decode_labels(body, now=now), client=_client_id(request), now=now)
        results = [
            LabelResult(status=int(STATUS_OF[outcome.code]), problem=problem_of_item(request, outcome))
            if isinstance(outcome, MlserveError)
            else LabelResult(status=200, outcome=outcome.outcome, is_fraud=outcome.is_fraud)
            for outcome in outcomes
        ]
        return HttpResponse(_encode(LabelsResponse(results)), content_type=_JSON)


class ModelsView(_ScoringView):
    @describe_models
    def get(self, _request: Request) -> HttpResponse:
        """Every model version with its thresholds and metrics, and which one serves."""
        return HttpResponse(_encode(list_models()), content_type=_JSON)


def _server_timing(milliseconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name};dur={ms:.2f}" for name, ms in milliseconds.items())


def _client_id(request: Request) -> str:
    client = client_of(request)
    assert client is not None, "the view is closed to requests without a key"
    return client.id
