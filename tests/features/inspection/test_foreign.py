"""Bytes, lines and answers that are none: the inspector concludes nothing from them."""

from typing import Any

import pytest

from features.inspection.copies import Tiers
from features.policies import policies_in_force
from mlserve.cache.clock import SystemClock
from mlserve.cache.inquiry import Answer, HeldCopy, Question, list_of, pack_answer
from mlserve.cache.keys import names_of
from mlserve.cache.wiring import engine
from tests.features.inspection.conftest import GROUP, Bench
from tests.features.inspection.seen import checked_by


@pytest.mark.parametrize(
    "foreign", [b"", b"\0" * 17, b"\xff" * 400, b"\xff" * 8 + b"V" + b"\xff" * 20, b"x" * 1_100_000]
)
def test_bytes_that_are_no_record_are_no_copy(bench: Bench, foreign: bytes) -> None:
    """Whoever reads them loads from Postgres."""
    bench.write(1)
    bench.client.hset(bench.record(), bench.key.group, foreign)
    inspector = bench.look_after(2)
    assert checked_by(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_a_value_of_another_type_is_no_copy(bench: Bench) -> None:
    """Under the name of an entity's hash."""
    bench.write(1)
    bench.client.set(bench.record(), b"not a hash")
    inspector = bench.look_after(2)
    assert checked_by(inspector)[1, "l2"] == 1 and inspector.tally.inconsistent == 0


def test_journal_lines_that_nobody_wrote_are_lines_like_others(bench: Bench) -> None:
    """Groups that nobody knows, versions below zero, ids without a row."""
    for group, version in (("no_such_group", 1), (GROUP, -5), (GROUP, 2**62)):
        bench.session.execute(
            'INSERT INTO features_journal ("group", entity_ids, versions) VALUES (%s, ARRAY[%s], ARRAY[%s]::bigint[])',
            (group, f"{bench.key.id}-{version}", version),
        )
    inspector = bench.look_after(2)
    assert checked_by(inspector)[1, "all"] == 2 and inspector.tally.inconsistent == 0


def test_answers_that_no_process_gave_are_left_out(proven: Bench) -> None:
    """Foreign bytes, somebody else's keys and moments that are none."""
    proven.write(1)
    proven.settled()
    bus = engine().bus
    other = proven.other_key()

    class Flooded:
        def ask(self, question: Question) -> bool:
            name = list_of(names_of(proven.key.kind, proven.key.id, 1).partition, question.id)
            copy = HeldCopy("merchant", other.id, GROUP, 1, 1.0, 1.0, 1.0, False, b"")
            endless = HeldCopy("merchant", proven.key.id, GROUP, 1, 1.0, 1.0, float("nan"), False, b"")
            proven.client.rpush(
                name,
                b"\xff" * 100,
                pack_answer(Answer("p", 1.0, [copy])),
                pack_answer(Answer("p", 1.0, [endless])),
                pack_answer(Answer("p", float("inf"), [])),
            )
            return bus.ask(question)

        def collect(self, question: Question) -> Any:
            return bus.collect(question)

    tiers = Tiers(l2=[], bus=Flooded(), clock=SystemClock())
    looked = tiers.look([proven.key], policies_in_force().policies)
    assert looked.copies == {proven.key: []}
    assert "p" in looked.processes and len(looked.processes) == 2
