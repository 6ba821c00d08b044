"""Which column of a file is which field of a transaction."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

REQUIRED_FIELDS = ("transaction_id", "occurred_at", "customer_id", "merchant_id", "amount")
OPTIONAL_FIELDS = ("currency", "is_fraud")
"""Without a column, the currency is EUR and the label unknown."""
FIELDS = (*REQUIRED_FIELDS, *OPTIONAL_FIELDS)

CANONICAL = "canonical"
LAYOUTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        CANONICAL: {field: field for field in FIELDS},
        # Fraud Detection Handbook (Le Borgne et al. 2022), the simulated stream of chapter 2.
        "handbook": {
            "transaction_id": "TRANSACTION_ID",
            "occurred_at": "TX_DATETIME",
            "customer_id": "CUSTOMER_ID",
            "merchant_id": "TERMINAL_ID",
            "amount": "TX_AMOUNT",
            "is_fraud": "TX_FRAUD",
        },
    }
)


_ALSO_CALLED = {
    "currency": ("currency", "currencycode", "curr", "ccy", "txcurrency", "transactioncurrency"),
    "is_fraud": ("isfraud", "fraud", "fraudlabel", "txfraud", "label", "class", "isfraudulent", "fraudulent"),
}
"""What optional fields are called in other people's files: letters and digits alone, in lower case."""
NO_COLUMN = ""
"""In a mapping: the file has no column for this field."""


class LayoutError(ValueError):
    """The columns asked for are not in the file, or cannot be told apart. The message names them and the fix."""


def parse_mapping(pairs: Sequence[str]) -> dict[str, str]:
    """`["amount=AMT"]` as `{"amount": "AMT"}`. A column's name may hold `=`; a field's cannot.

    `currency=` says that no column of the file is the currency, whatever it looks like.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not equals or (not column and field not in OPTIONAL_FIELDS):
            raise LayoutError(f"--map {pair!r}: write it as FIELD=COLUMN, for example amount=TX_AMOUNT")
        if field not in FIELDS:
            raise LayoutError(f"--map {pair!r}: no field is called {field!r}; the fields are {', '.join(FIELDS)}")
        if field in mapping:
            raise LayoutError(f"--map {field}: given twice ({mapping[field]!r} and {column!r})")
        mapping[field] = column
    return mapping


def layout_of(columns: Sequence[str], *, layout: str | None = None) -> str:
    """The layout asked for; without one the first whose required columns are all there, else the canonical one."""
    if layout is not None:
        return layout
    present = set(columns)
    for name, names in LAYOUTS.items():
        if all(names[field] in present for field in REQUIRED_FIELDS):
            return name
    return CANONICAL


def column_positions(columns: Sequence[str], *, layout: str, mapping: Mapping[str, str]) -> dict[str, int]:
    """Field to position among `columns`, for the fields that the file has; `mapping` goes before the layout.

    Raises LayoutError if a required field or a mapped column is missing, if a column that is needed stands there twice,
    or if one that looks like an optional field would be passed over.
    """
    declined = {field for field, column in mapping.items() if column == NO_COLUMN}
    wanted = {field: column for field, column in {**LAYOUTS[layout], **mapping}.items() if field not in declined}
    needed = {*REQUIRED_FIELDS, *mapping} - declined
    present = set(columns)
    missing = [field for field in FIELDS if field in needed and wanted.get(field) not in present]
    if missing:
        raise LayoutError(_missing_columns(missing, wanted, columns))
    positions = {field: columns.index(wanted[field]) for field in FIELDS if wanted.get(field) in present}
    for field, position in positions.items():
        if columns.count(columns[position]) > 1:
            raise LayoutError(f"column {columns[position]!r} ({field}) stands in the file more than once")
    unused = unused_columns(columns, positions)
    for field in OPTIONAL_FIELDS:
        if field not in positions and field not in declined:
            _refuse_lookalike(field, unused)
    return positions


def unused_columns(columns: Sequence[str], positions: Mapping[str, int]) -> list[str]:
    """Those that are no field's, in the file's order."""
    return [column for position, column in enumerate(columns) if position not in positions.values()]


def _refuse_lookalike(field: str, unused: Sequence[str]) -> None:
    for column in unused:
        if "".join(filter(str.isalnum, column)).lower() in _ALSO_CALLED[field]:
            raise LayoutError(
                f"column {column!r} looks like {field} and would be passed over: say --map {field}={column}, or "
                f"--map {field}= if it is something else"
            )


def _missing_columns(missing: Sequence[str], wanted: Mapping[str, str], columns: Sequence[str]) -> str:
    named = ", ".join(field if wanted[field] == field else f"{field} ({wanted[field]!r})" for field in missing)
    found = ", ".join(columns[:40]) + (", ..." if len(columns) > 40 else "")
    return (
        f"no column for {named}; the file has: {found or 'no columns'}. "
        f"Say which column it is with --map {missing[0]}=COLUMN, or choose a --layout ({', '.join(LAYOUTS)})"
    )
