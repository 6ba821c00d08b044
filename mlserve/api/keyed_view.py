"""What the endpoints behind an API key share."""

from typing import Any, ClassVar

from rest_framework.request import Request

from mlserve.api.api_view import ApiView
from mlserve.api.parameters import read_parameters
from mlserve.api.throttle import add_headers, charge


class KeyedView(ApiView):
    """Holds the key to its limit: each request is one unit, and a view that does more charges the rest by itself.

    Refuses query parameters with 400, once the key is checked: a misspelled one never passes silently.
    A view that takes some says so by `reads_parameters` and reads them by itself.
    """

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
        query = request._request.META["QUERY_STRING"]
        if query and not self.reads_parameters:
            read_parameters(query)
