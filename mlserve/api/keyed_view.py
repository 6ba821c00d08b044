"""What the endpoints behind an API key share."""

from collections.abc import Mapping
from typing import Any, ClassVar

from rest_framework.request import Request

from mlserve.api.api_view import ApiView
from mlserve.api.data_version import versions_sent
from mlserve.api.parameters import read_parameters
from mlserve.api.throttle import add_headers, charge
from mlserve.cache.keys import Key


class KeyedView(ApiView):
    """Holds the key to its limit: each request is one unit, and a view that does more charges the rest by itself.

    Refuses query parameters with 400, once the key is checked: a misspelled one never passes silently.
    A view that takes some says so by `reads_parameters` and reads them by itself.

    So is an `X-Data-Version` that is no token of this service's, also where it would say nothing.
    `versions_sent`: what it names; None without one.
    """

    versions_sent: Mapping[Key, int] | None = None

    reads_parameters: ClassVar[bool] = False

    def check_throttles(self, request: Request) -> None:
        """REST framework's place for it: after the key and its scope are checked."""
        charge(request)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        finished = super().finalize_response(request, response, *args, **kwargs)
        add_headers(request, finished)
        return finished

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        self.versions_sent = versions_sent(request._request)
        query = request._request.META["QUERY_STRING"]
        if query and not self.reads_parameters:
            read_parameters(query)
