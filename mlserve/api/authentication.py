"""Who calls, and whether they may: bearer API keys and their scopes.

A view states `required_scope`, or `required_scopes` by method. A view that states neither is closed to everybody.
"""

from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.db import InterfaceError, OperationalError
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, MethodNotAllowed, NotAuthenticated, PermissionDenied
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from mlserve.api.key_format import MAXIMUM_LENGTH
from mlserve.api.keys import digest_of
from mlserve.api.lookup import ApiClient, directory
from mlserve.errors import ErrorCode, MlserveError

if TYPE_CHECKING:
    from rest_framework.views import APIView  # whose module imports this one, by the REST settings

_REALM = 'Bearer realm="mlserve"'
_HOW = "send the header `Authorization: Bearer <API key>`"


class KeysUnavailable(MlserveError):
    """Postgres does not answer, and this process has not seen the key lately."""

    code: ClassVar[ErrorCode] = ErrorCode.SOURCE_UNAVAILABLE
    retry_after_s: ClassVar[int | None] = 2


class BadCredentials(AuthenticationFailed):
    """`challenge` is the header that goes with the 401 (RFC 6750, section 3)."""

    def __init__(self, detail: str, *, error: str) -> None:
        super().__init__(detail)
        self.challenge = f'{_REALM}, error="{error}"'


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer <key>`; afterwards `request.user` is an `ApiClient`."""

    def authenticate(self, request: Request) -> tuple[ApiClient, None] | None:
        """None without the header. Raises for one that is wrong, with the same words whatever is wrong with the key."""
        # From where the server put it: `request.headers` would first go through all that there are.
        header = request._request.META.get("HTTP_AUTHORIZATION")
        if not header:
            return None
        scheme, _, key = header.partition(" ")
        if scheme.lower() != "bearer":
            raise BadCredentials(
                f"The scheme of the Authorization header is not Bearer; {_HOW}.", error="invalid_request"
            )
        client = _find(key.encode("latin-1", "replace").strip())  # WSGI's way to hand over bytes
        if client is None:
            raise BadCredentials("The API key is not valid: unknown, mistyped or revoked.", error="invalid_token")
        return client, None

    def authenticate_header(self, request: Request) -> str:
        """The challenge of a 401. Without it REST framework would answer 403."""
        return _REALM


class HasScope(BasePermission):
    """Lets a request through if its key has the scope that the view states for the method."""

    def has_permission(self, request: Request, view: "APIView") -> bool:
        """Raises instead of returning False, to say what is missing.

        A method that the view does not offer is not a matter of scopes: any key gets 405.
        """
        method = request.method  # asked for once: it is looked up in three places
        required = required_scope(view, method)
        client = client_of(request)
        if client is None:
            raise NotAuthenticated(f"This needs an API key; {_HOW}.")
        if method not in view.allowed_methods:
            raise MethodNotAllowed(str(method))
        if required is None:
            raise PermissionDenied("This is open to no key.")
        if required not in client.scopes:
            has = ", ".join(sorted(client.scopes)) or "none"
            raise PermissionDenied(f"This needs the scope `{required}`; the key has: {has}.")
        return True


def client_of(request: Request) -> ApiClient | None:
    """Who calls; None if the request came without a key."""
    return cast("ApiClient | None", request.user)


def required_scope(view: Any, method: str | None) -> str | None:
    """The scope that the view states for this method; HEAD needs what GET needs. None if it states none."""
    by_method: dict[str, str] = getattr(view, "required_scopes", {})
    known = by_method.get("GET" if method == "HEAD" else method or "")
    stated: str | None = getattr(view, "required_scope", None)
    return known or stated


def _find(key: bytes) -> ApiClient | None:
    if not 0 < len(key) <= MAXIMUM_LENGTH:
        return None
    try:
        return directory.find(digest_of(key))
    except (OperationalError, InterfaceError) as error:
        raise KeysUnavailable(
            "The database does not answer, so that the API key cannot be checked; try again."
        ) from error
