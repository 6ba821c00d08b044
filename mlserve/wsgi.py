"""The web process: `granian --interface wsgi mlserve.wsgi:application`."""

from django.core.wsgi import get_wsgi_application

from mlserve import embedded
from mlserve.postgres.sessions import Kind, usual_kind

embedded.prepare_process()
_django = get_wsgi_application()
usual_kind(Kind.PAGE)  # what is neither the API's nor a background thread's

# Only importable once Django is set up.
from django.conf import settings  # noqa: E402

from mlserve.api.admission import Admission  # noqa: E402
from mlserve.api.gate import Gate  # noqa: E402
from mlserve.at_start import begin_all  # noqa: E402
from mlserve.cache.clock import SystemClock  # noqa: E402


def _admission(at_once: int, most_waiting: int) -> Admission:
    return Admission(at_once=at_once, most_waiting=most_waiting, clock=SystemClock())


application = Gate(
    _django,
    scores=_admission(settings.SCORES_AT_ONCE, settings.SCORES_WAITING),
    batches=_admission(settings.BATCHES_AT_ONCE, settings.BATCHES_WAITING),
    other_bodies=_admission(settings.OTHER_BODIES_AT_ONCE, settings.OTHER_BODIES_WAITING),
)
begin_all()  # what serves is loaded before the first request asks for it
