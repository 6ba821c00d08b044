"""Settings of all processes of a bad day: the demo's, with builds so often that faults meet them under way."""

from typing import Any

from mlserve.settings.local import *  # noqa: F403

CELERY_BEAT_SYNC_EVERY = 1  # beat notes each run at once, so that `doctor` sees it also on a short day
_EVERY_S = {
    "warm-most-active": 40,
    "build-bloom-filters": 60,
    "rebuild-merchant-risk": 20,
    "rebuild-profiles": 45,
    "build-embeddings": 90,
    "keep-journal": 30,
}


def _changed(name: str) -> dict[str, Any]:
    if name not in _EVERY_S:
        return {}
    return {"schedule": float(_EVERY_S[name]), "options": {"expire_seconds": _EVERY_S[name]}}


CELERY_BEAT_SCHEDULE = {
    name: {**entry, **_changed(name)}
    for name, entry in CELERY_BEAT_SCHEDULE.items()  # noqa: F405
}
