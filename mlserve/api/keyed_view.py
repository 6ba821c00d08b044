"""What the endpoints behind an API key share."""

from typing import Any, ClassVar

from rest_framework.request import Request

from mlserve.api.api_view import ApiView
from mlserve.api.parameters import read_parameters


class KeyedView(ApiView):
    """Refuses query parameters with 400, once the key is checked: a misspelled one never passes silently.

    A view that takes some says so by `reads_parameters` and reads them by itself.
    """

    reads_parameters: ClassVar[bool] = False

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        query = request.META["QUERY_STRING"]
        if query and not self.reads_parameters:
            read_parameters(query)
