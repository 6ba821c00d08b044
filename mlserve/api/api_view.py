"""What every view of the API shares beyond REST framework's settings."""

from typing import Any, ClassVar, Final

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from rest_framework.exceptions import NotAcceptable
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from mlserve.api.database_time import database_within
from mlserve.postgres.sessions import Kind, session_of

ALTOGETHER_S: Final = 6.0
_ANYTHING: Final = "*/*"


def accepts(accepted: str, offered: str) -> bool:
    """Whether a client whose `Accept` header is `accepted` takes that media type; parameters are not looked at."""
    kind, _, _ = offered.partition("/")
    ranges = [part.partition(";")[0].strip().lower() for part in accepted.split(",")]
    return any(range_ in (offered, f"{kind}/*", _ANYTHING) for range_ in ranges)


class ApiView(APIView):
    """Offers the methods that it defines and no OPTIONS: the OpenAPI document describes it better.

    Works out once what is the same for each of its requests.
    """

    database_s: ClassVar[float | None] = ALTOGETHER_S
    """For which a call may wait for PostgreSQL altogether; None where each part of the work has a bound of its own."""
    metadata_class = None
    produces: ClassVar[str | None] = None
    """The media type of its answers, where that is not the renderer's."""
    http_method_names = ["get", "head", "post", "put", "patch", "delete"]

    _methods: ClassVar[list[str]] = []
    _allow: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        answers = {"head": "get"}  # Django answers a HEAD by what it has for a GET
        cls._methods = [name.upper() for name in cls.http_method_names if hasattr(cls, answers.get(name, name))]
        cls._allow = ", ".join(cls._methods)

    @property
    def allowed_methods(self) -> list[str]:
        return self._methods

    @property
    def default_response_headers(self) -> dict[str, str]:
        return {"Allow": self._allow}

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[BaseRenderer, str]:
        """As REST framework's; with a client that takes anything, or what we have, there is nothing to negotiate."""
        renderer: BaseRenderer = self.get_renderers()[0]
        accepted = request._request.META.get("HTTP_ACCEPT", _ANYTHING)
        if accepted in (_ANYTHING, renderer.media_type):
            return renderer, renderer.media_type
        if self.produces is not None:
            if force or accepts(accepted, self.produces):
                return renderer, renderer.media_type
            raise NotAcceptable
        negotiated: tuple[BaseRenderer, str] = super().perform_content_negotiation(request, force)
        return negotiated

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if self.database_s is None:
            with session_of(Kind.API):
                return super().dispatch(request, *args, **kwargs)
        with database_within(self.database_s, kind=Kind.API):
            return super().dispatch(request, *args, **kwargs)
