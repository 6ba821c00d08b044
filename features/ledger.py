"""The ledger as numpy columns: what builds and training read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from django.db import connection
from pyarrow import csv

from features.compute import AMOUNT_UNITS, Floats, Integers, LateLabels
from features.definitions import LABEL_DELAY_DAYS, Entity

Names = npt.NDArray[np.object_]


class Entities(NamedTuple):
    """Some customers, or some merchants."""

    entity: Entity
    ids: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Rows by moment, equal moments by transaction id (shorter first, then byte by byte).

    `customer` and `merchant` are codes into `customers` and `merchants`, which are sorted. `amount_units` are 1e-4 of
    the currency. `label` is 1 for fraud, 0 for not, -1 as long as nobody has said; `late` says when less was known.
    """

    transaction_ids: Names
    at_us: Integers
    customers: Names
    customer: Integers
    merchants: Names
    merchant: Integers
    amount_units: Integers
    label: npt.NDArray[np.int8]
    late: LateLabels

    def __len__(self) -> int:
        return len(self.at_us)

    @property
    def amount(self) -> Floats:
        return self.amount_units / AMOUNT_UNITS

    @property
    def fraud(self) -> Integers:
        """1 where fraud is known, else 0."""
        return (self.label == 1).astype(np.int64)

    def before(self, at_us: int) -> "Ledger":
        """The rows before this moment, and the customers and merchants that they name."""
        size = int(np.searchsorted(self.at_us, at_us))
        customers, customer = np.unique(self.customer[:size], return_inverse=True)
        merchants, merchant = np.unique(self.merchant[:size], return_inverse=True)
        there = self.late.row < size
        return Ledger(
            transaction_ids=self.transaction_ids[:size],
            at_us=self.at_us[:size],
            customers=self.customers[customers],
            customer=customer,
            merchants=self.merchants[merchants],
            merchant=merchant,
            amount_units=self.amount_units[:size],
            label=self.label[:size],
            late=LateLabels(*(column[there] for column in self.late)),
        )


def read_ledger(*, until: datetime, of: Entities | None = None) -> Ledger:
    """All transactions that occurred at `until` or before, or those of some entities, in one statement: one snapshot.

    Takes about 150 bytes of memory a row and a few seconds for a million.
    """
    columns = _parsed(_copied(until, of))
    customers, customer = _codes(columns["customer_id"])
    merchants, merchant = _codes(columns["merchant_id"])
    return Ledger(
        transaction_ids=columns["id"].to_numpy(zero_copy_only=False),
        at_us=columns["at_us"].to_numpy(),
        customers=customers,
        customer=customer,
        merchants=merchants,
        merchant=merchant,
        amount_units=columns["amount_units"].to_numpy(),
        label=columns["label"].to_numpy(),
        late=_late_labels(columns["steps"]),
    )


def microseconds(moment: datetime) -> int:
    """Since 1970, exactly; `datetime.timestamp` is a rounded float."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _late_labels(column: Any) -> LateLabels:
    """Of rows whose label came, or changed, later than labels do: each step with what had been known until then.

    A step is `recorded at:known before`, oldest first. One that came in time is none: no window asks so early.
    """
    rows: list[int] = []
    begins: list[int] = []
    ends: list[int] = []
    known: list[int] = []
    labelled = pc.indices_nonzero(pc.not_equal(pc.fill_null(column, ""), ""))
    for row, steps in zip(labelled.to_pylist(), column.take(labelled).to_pylist(), strict=True):
        begin = _ALWAYS_US
        for step in steps.split(";"):
            end, before = map(int, step.split(":"))
            rows.append(row)
            begins.append(begin)
            ends.append(end)
            known.append(before)
            begin = end
    return LateLabels(*(np.array(numbers, dtype=np.int64) for numbers in (rows, begins, ends, known)))


_ALWAYS_US = -(2**62)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _copy_statement(*, late: str = "", rows: str = "") -> str:
    """`late` and `rows`: further conditions on the transactions with late labels, and on all of them."""
    return f"""
COPY (
    SELECT id, (extract(epoch FROM occurred_at) * 1000000)::bigint, customer_id, merchant_id,
           (amount * {AMOUNT_UNITS})::bigint, coalesce(is_fraud::int, -1), late.steps
    FROM features_transaction
    LEFT JOIN (
        SELECT report.transaction_id,
               string_agg((extract(epoch FROM report.recorded_at) * 1000000)::bigint || ':' ||
                          coalesce(report.was, false)::int, ';' ORDER BY report.id) AS steps
        FROM features_labelreport AS report JOIN features_transaction AS labelled ON labelled.id = report.transaction_id
        WHERE report.applied AND report.is_fraud <> coalesce(report.was, false)
              AND report.recorded_at > labelled.occurred_at + interval '{LABEL_DELAY_DAYS * 24} hours'
              {late}
        GROUP BY report.transaction_id
    ) AS late ON late.transaction_id = id
    WHERE occurred_at <= %(until)s {rows}
    ORDER BY occurred_at, octet_length(id), id COLLATE "C"
) TO STDOUT (FORMAT csv, FORCE_QUOTE (id, customer_id, merchant_id))
"""


_COPY = _copy_statement()
_COPY_OF: dict[Entity, str] = {
    entity: _copy_statement(
        late=f"AND labelled.{entity}_id = ANY(%(ids)s)", rows=f"AND features_transaction.{entity}_id = ANY(%(ids)s)"
    )
    for entity in get_args(Entity)
}
_COLUMNS = {
    "id": pa.string(),
    "at_us": pa.int64(),
    "customer_id": pa.dictionary(pa.int32(), pa.string()),
    "merchant_id": pa.dictionary(pa.int32(), pa.string()),
    "amount_units": pa.int64(),
    "label": pa.int8(),
    "steps": pa.string(),
}


def _copied(until: datetime, of: Entities | None) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    statement: str = _COPY
    asked: dict[str, Any] = {"until": until}
    if of is not None:
        statement, asked = _COPY_OF[of.entity], {"until": until, "ids": list(of.ids)}
    with connection.cursor() as cursor, cursor.copy(statement, asked) as copy:
        for data in copy:
            sink.write(data)
    return sink.getvalue()


def _parsed(data: pa.Buffer) -> Any:
    if not data.size:  # the reader takes no bytes for a broken file
        return pa.table({name: pa.array([], kind) for name, kind in _COLUMNS.items()})
    return csv.read_csv(
        pa.BufferReader(data),
        read_options=csv.ReadOptions(column_names=list(_COLUMNS)),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=_COLUMNS),
    )


def _codes(column: Any) -> tuple[Names, Integers]:
    """The distinct ids, sorted, and each row's place among them."""
    whole = column.combine_chunks() if column.num_chunks else pa.array([], column.type)
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.unify_dictionaries().chunk(0)
    order = pc.sort_indices(whole.dictionary).to_numpy()
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return whole.dictionary.take(pa.array(order)).to_numpy(zero_copy_only=False), place[whole.indices.to_numpy()]
