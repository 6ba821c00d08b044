"""The addresses of features and policies, below `/v1/`."""

from django.urls import path

from features.api.views import EntityView, PoliciesView

urlpatterns = [
    path("features/<str:entity>/<str:entity_id>", EntityView.as_view(), name="features"),
    path("policies", PoliciesView.as_view(), name="policies"),
]
