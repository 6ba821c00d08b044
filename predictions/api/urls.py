"""The addresses of scoring, below `/v1/`."""

from django.urls import path

from predictions.api.views import LabelsView, ModelsView, ScoreBatchView, ScoresView, StoredScoreView

urlpatterns = [
    path("scores", ScoresView.as_view(), name="scores"),
    path("scores/batch", ScoreBatchView.as_view(), name="score-batch"),
    path("scores/<str:transaction_id>", StoredScoreView.as_view(), name="stored-score"),
    path("labels", LabelsView.as_view(), name="labels"),
    path("models", ModelsView.as_view(), name="models"),
]
