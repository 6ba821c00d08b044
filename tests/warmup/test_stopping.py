import os
import signal
import weakref
from io import StringIO

import pytest

from mlserve.stopping import Stop, StopRequested, stop_on_signals
from warmup.demo.stages import Stages


class _Thing:
    pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_that_was_lost_in_a_callback_ends_the_stage() -> None:
    """Python drops what is raised in a weak reference's callback; the stage's end still sees the request."""
    reached = []
    with pytest.raises(StopRequested), stop_on_signals() as stop:
        stages = Stages(StringIO(), stop.check)
        with stages.stage("database", "migrations"):
            thing = _Thing()
            _watch = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del thing
            reached.append("end")
    assert reached == ["end"]
    assert "database" not in stages.seconds


def test_every_further_signal_raises_again() -> None:
    """Whoever presses Ctrl-C once more is heard, whatever became of the first."""
    with stop_on_signals():
        for _ in range(3):
            with pytest.raises(StopRequested):
                os.kill(os.getpid(), signal.SIGINT)


def test_a_stage_does_not_begin_after_a_request() -> None:
    """Not even its line is written."""
    out = StringIO()
    with stop_on_signals() as stop:
        with pytest.raises(StopRequested):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(StopRequested), Stages(out, stop.check).stage("data", "simulating"):
            pass
    assert out.getvalue() == ""


def test_while_nothing_is_raised_the_request_is_noted() -> None:
    """For loops that look."""
    stop = Stop()
    stop.raises = False
    stop._note(signal.SIGINT, None)
    stop.check()
    assert stop.requested and stop.wait(60.0)
