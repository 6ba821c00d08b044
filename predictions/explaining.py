"""Why an earlier score was what it was: from the vector that lies with the decision, by the model that gave it.

An approval is answered without reasons, since nobody asks for most of them. They cost a run of the model, and nothing
of what they need is lost: the decision has every value that the model got, and model versions are never changed.
"""

from functools import lru_cache

import msgspec
from django.db import connection

from mlserve.errors import MlserveError
from predictions import stored
from predictions.messages import ScoreResponse
from predictions.models import ModelVersion
from predictions.reasons import explain
from predictions.registry.active import current_model, load_model_version
from predictions.registry.artifact import LoadedModel

_MODELS_KEPT = 4
"""Versions that no longer serve. Reviewers ask for decisions of the last days."""


def stored_score_with_reasons(transaction_id: str) -> bytes | None:
    """The decision that was given, as JSON, with reasons; None if there is none.

    Those that it was given with stand. Raises ArtifactRefused if the model version cannot be loaded any more, and
    Django's database errors.
    """
    with connection.cursor() as cursor:
        cursor.execute(_DECISION, (transaction_id,))
        row = cursor.fetchone()
    if row is None:
        return None
    response, model_version_id, currency = stored.unpack(row[0]), row[1], row[2]
    answer = msgspec.json.decode(response, type=ScoreResponse)
    if answer.reasons or not answer.features:
        return response
    model = _model_of(model_version_id)
    values = {feature.name: feature.value for feature in answer.features}
    reasons = explain(model, [values[name] for name in model.feature_names], currency=currency)
    return msgspec.json.encode(msgspec.structs.replace(answer, reasons=reasons))


def _model_of(model_version_id: int) -> LoadedModel:
    digest = ModelVersion.objects.values_list("digest", flat=True).get(pk=model_version_id)
    try:
        serving = current_model()
    except MlserveError:  # an explanation needs no active model
        return _loaded(model_version_id, digest)
    serves = (serving.model_version_id, serving.digest) == (model_version_id, digest)
    return serving if serves else _loaded(model_version_id, digest)


@lru_cache(_MODELS_KEPT)
def _loaded(model_version_id: int, _digest: str) -> LoadedModel:
    """The digest is for the cache: after a restore one number may stand for another model."""
    return load_model_version(ModelVersion.objects.get(pk=model_version_id))


_DECISION = """
SELECT decision.response, decision.model_version_id, coalesce(ledger.currency, '')
FROM predictions_decision AS decision LEFT JOIN features_transaction AS ledger ON ledger.id = decision.transaction_id
WHERE decision.transaction_id = %s
"""
