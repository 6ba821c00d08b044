"""What every view of the API shares beyond REST framework's settings."""

from typing import Any, Final

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.views import APIView

from mlserve.patience import answer_within

PATIENCE_S: Final = 2.0
"""For each statement that a view waits for: a frozen Postgres must not keep the threads of the web process."""


class ApiView(APIView):
    """Offers the methods that it defines and no OPTIONS: the OpenAPI document describes it better."""

    metadata_class = None
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with answer_within(PATIENCE_S):
            return super().dispatch(request, *args, **kwargs)
