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
from mlserve.api.gate import MAX_CALL_WAIT_S, MAX_PAGE_WAIT_S, Gate  # noqa: E402
from mlserve.at_start import begin_all  # noqa: E402
from mlserve.cache.clock import SystemClock  # noqa: E402
from mlserve.settings.threads import Shares, Slots  # noqa: E402

_shares: Shares = settings.THREAD_SHARES


def _admission(slots: Slots, *, max_wait_s: float | None = None) -> Admission:
    return Admission(at_once=slots.at_once, most_waiting=slots.waiting, clock=SystemClock(), max_wait_s=max_wait_s)


application = Gate(
    _django,
    scores=_admission(_shares.scores),
    batches=_admission(_shares.batches),
    pages=_admission(_shares.pages, max_wait_s=MAX_PAGE_WAIT_S),
    forms=_admission(_shares.forms, max_wait_s=MAX_PAGE_WAIT_S),
    calls=_admission(_shares.calls, max_wait_s=MAX_CALL_WAIT_S),
    bodies=_admission(_shares.bodies, max_wait_s=MAX_CALL_WAIT_S),
    metrics=_admission(_shares.metrics, max_wait_s=MAX_CALL_WAIT_S),
)
begin_all()  # what serves is loaded before the first request asks for it
