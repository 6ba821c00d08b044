"""The web process: `granian --interface wsgi mlserve.wsgi:application`."""

from django.core.wsgi import get_wsgi_application

from mlserve import embedded

embedded.prepare_process()
_django = get_wsgi_application()

# Only importable once Django is set up.
from django.conf import settings  # noqa: E402

from mlserve.api.admission import Admission  # noqa: E402
from mlserve.api.gate import Gate  # noqa: E402
from mlserve.cache.clock import SystemClock  # noqa: E402

application = Gate(
    _django,
    Admission(at_once=settings.SCORES_AT_ONCE, most_waiting=settings.SCORES_WAITING, clock=SystemClock()),
)
