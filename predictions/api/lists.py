"""Lists as they go in and out of the API: an object with one member, and a result for each of its objects."""

from typing import Annotated

import msgspec
from msgspec import Meta

from features.labels import LabelOutcome
from mlserve.api.problems import Problem
from predictions.messages import Label, ScoreRequest, ScoreResponse


class BatchRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """1 to 100 transactions, each as `POST /v1/scores` takes one."""

    transactions: Annotated[list[ScoreRequest], Meta(min_length=1, max_length=100)]


class BatchResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One item's end: `answer` with status 200, else `problem`. `replayed`: it was scored before.

    `data_version`: what a call of its own would have in `X-Data-Version`.
    """

    status: int
    replayed: bool = False
    answer: ScoreResponse | None = None
    data_version: str | None = None
    problem: Problem | None = None


class BatchResponse(msgspec.Struct, frozen=True):
    """A result for each transaction, in their order."""

    results: list[BatchResult]


class LabelsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """1 to 1,000 labels."""

    labels: Annotated[list[Label], Meta(min_length=1, max_length=1_000)]


class LabelResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One label's end: `outcome` and the label in force with status 200, else `problem`."""

    status: int
    outcome: LabelOutcome | None = None
    is_fraud: bool | None = None
    problem: Problem | None = None


class LabelsResponse(msgspec.Struct, frozen=True):
    """A result for each label, in their order."""

    results: list[LabelResult]
