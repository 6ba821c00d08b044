"""Files into the ledger: what is loaded, what is rejected, and that doing it twice is doing it once."""

import decimal
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from features.models import Transaction
from tests.features.transactions.files import HEADER, csv_file, rejects_of, row, run_import

pytestmark = pytest.mark.django_db


def test_good_rows_load_and_bad_rows_are_named_by_physical_line(tmp_path: Path) -> None:
    """A quoted line break moves the line numbers of all that follows; the broken rows cost nobody else."""
    file = csv_file(
        tmp_path / "a.csv",
        row(1) + ',"two\nlines"',
        row(2, amount="NaN") + ",x",
        row(3),
        "",
        row(4) + ",x,y",
        row(5) + ',"never closed',
        row(6) + ",x",
        "t7,2026-01-01 00:00:00,caf\udce9,m1,1.00,EUR,,x",
        header=HEADER + ",note",
    )
    result = run_import(file)
    assert [(r["line"], r["field"]) for r in rejects_of(result)] == [
        ("4", "amount"),
        ("5", ""),
        ("7", ""),
        ("8", ""),
        ("10", "customer_id"),
    ]
    assert set(Transaction.objects.values_list("id", flat=True)) == {"t1", "t6"}
    assert (result["rows"], result["imported"], result["rejected"]) == (7, 2, 5)


def test_importing_twice_is_importing_once(tmp_path: Path) -> None:
    """The second run finds everything known and changes nothing."""
    file = csv_file(tmp_path / "a.csv", *map(row, range(50)))
    first, second = run_import(file), run_import(file)
    assert (first["imported"], first["already_known"]) == (50, 0)
    assert (second["imported"], second["already_known"], second["duplicates"]) == (0, 50, 0)
    assert Transaction.objects.count() == 50


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(numbers=st.lists(st.integers(0, 9), min_size=1, max_size=20), chunk=st.integers(1, 7))
def test_every_row_is_accounted_for(tmp_path: Path, numbers: list[int], chunk: int) -> None:
    """Whatever repeats, within a chunk or across chunks: the first is imported, the others are duplicates."""
    Transaction.objects.all().delete()
    file = csv_file(tmp_path / "a.csv", *map(row, numbers))
    result = run_import(file, "--chunk-rows", str(chunk))
    assert (result["imported"], result["duplicates"]) == (len(set(numbers)), len(numbers) - len(set(numbers)))
    assert run_import(file, "--chunk-rows", str(chunk))["imported"] == 0
    assert Transaction.objects.count() == len(set(numbers))


def test_other_contents_under_a_known_id_are_rejected(tmp_path: Path) -> None:
    """The first contents stay, in the file as in the ledger."""
    run_import(csv_file(tmp_path / "a.csv", row(1)))
    result = run_import(csv_file(tmp_path / "b.csv", row(1, amount="11.00"), row(2), row(2, amount="12.00")))
    assert [(r["line"], r["field"], r["reason"], r["value"]) for r in rejects_of(result)] == [
        ("2", "transaction_id", "already known with other contents", "t1"),
        ("4", "transaction_id", "already known with other contents", "t2"),
    ]
    assert set(Transaction.objects.values_list("id", "amount")) == {
        ("t1", decimal.Decimal(10)),
        ("t2", decimal.Decimal(10)),
    }


def test_labels_arrive_later(tmp_path: Path) -> None:
    """A row without a label gets it from a later file; a label that contradicts one is rejected."""
    run_import(csv_file(tmp_path / "a.csv", row(1, label=""), row(2, label=""), row(3, label="1")))
    result = run_import(csv_file(tmp_path / "b.csv", row(1, label="1"), row(2, label=""), row(3, label="0")))
    assert (result["labelled"], result["already_known"], result["rejected"]) == (1, 2, 1)
    assert rejects_of(result)[0]["field"] == "is_fraud"
    labels = dict(Transaction.objects.values_list("id", "is_fraud"))
    assert labels == {"t1": True, "t2": None, "t3": True}


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(tmp_path: Path, delimiter: str) -> None:
    """Byte order mark, Windows line ends and any of four delimiters need no option."""
    file = tmp_path / "a.csv"
    text = "\r\n".join([HEADER, row(1), row(2)]).replace(",", delimiter)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert run_import(file)["imported"] == 2


def test_columns_are_mapped_and_layouts_recognised(tmp_path: Path) -> None:
    """The handbook's columns need no option, others a --map; without a currency it is EUR."""
    names = "TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"
    result = run_import(csv_file(tmp_path / "a.csv", "1,2026-01-01 00:00:01,1,2,3.5,1", header=names))
    assert result["layout"] == "handbook"
    assert Transaction.objects.values_list("id", "merchant_id", "currency", "is_fraud").get() == ("1", "2", "EUR", True)
    run_import(
        csv_file(tmp_path / "b.csv", "2,2026-01-01,1,2,3.5,1", header=names.replace("TERMINAL_ID", "SHOP")),
        *("--layout", "handbook", "--map", "merchant_id=SHOP"),
    )
    assert Transaction.objects.count() == 2


def _parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Brussels"])
def test_parquet_times_are_moments(tmp_path: Path, unit: str, zone: str | None) -> None:
    """Every unit, with a zone or without one, is the same moment."""
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    file = _parquet(
        tmp_path / "a.parquet",
        transaction_id=pa.array([1], pa.int64()),
        occurred_at=pa.array([moment], pa.timestamp("s", "UTC")).cast(pa.timestamp(unit, zone)),
        customer_id=pa.array([2], pa.int16()),
        merchant_id=pa.array(["m"]).dictionary_encode(),
        amount=pa.array([decimal.Decimal("1.25")], pa.decimal128(10, 2)),
    )
    run_import(file)
    assert Transaction.objects.values_list("id", "occurred_at", "customer_id", "merchant_id", "amount").get() == (
        "1",
        moment,
        "2",
        "m",
        decimal.Decimal("1.25"),
    )


def test_parquet_rejects_name_the_row(tmp_path: Path) -> None:
    """Rows count from 1 across row groups; nulls, NaN, impossible times and bad bytes are rejects."""
    file = _parquet(
        tmp_path / "a.parquet",
        transaction_id=pa.array([1.0, 2.0, None, 4.0, 5.0]),
        occurred_at=pa.array([0, 10**12, 2, 3, 4], pa.timestamp("s")),
        customer_id=pa.array([b"a", b"b", b"c", b"\xff", b"e"]),
        merchant_id=pa.array(["m"] * 5, pa.large_string()),
        amount=pa.array([0.1 + 0.2, 1.0, 1.0, 1.0, float("nan")]),
        is_fraud=pa.array([True, None, False, True, None]),
    )
    result = run_import(file, "--chunk-rows", "2")
    assert [(r["line"], r["field"]) for r in rejects_of(result)] == [
        ("2", "occurred_at"),
        ("3", "transaction_id"),
        ("4", "customer_id"),
        ("5", "amount"),
    ]
    assert Transaction.objects.values_list("id", "amount").get() == ("1", decimal.Decimal("0.3"))


def test_a_damaged_parquet_file_keeps_what_was_committed(tmp_path: Path) -> None:
    """What cannot be read any more is an error that says how far it got."""
    file = tmp_path / "a.parquet"
    count = 20_000
    ids = pa.array([f"t{number:05d}" for number in range(count)])
    table = pa.table(
        {
            "transaction_id": ids,
            "occurred_at": pa.array(range(count), pa.timestamp("s")),
            "customer_id": ids,
            "merchant_id": ids,
            "amount": pa.array([1.0] * count),
        }
    )
    pq.write_table(table, file, row_group_size=1000, compression="gzip")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = b"\xff" * 20_000
    file.write_bytes(content)
    with pytest.raises(CommandError, match="committed until then") as error:
        run_import(file, "--chunk-rows", "1000")
    assert error.value.returncode == 1
    assert 0 < Transaction.objects.count() < count


@pytest.mark.parametrize(
    ("name", "content", "returncode", "words"),
    [
        ("a.csv", b"", 1, "empty"),
        ("a.csv", b"transaction_id,amount\n", 2, "--map occurred_at=COLUMN"),
        ("a.csv", HEADER.encode("utf-16"), 1, "UTF-16"),
        ("a.csv", b"\x1f\x8b\x08", 1, "gzip"),
        ("a.csv", (HEADER + ",amount\n").encode(), 2, "more than once"),
        ("a.parquet", b"transaction_id", 1, "not a Parquet file"),
        ("a.parquet", b"PAR1 and then nothing of use PAR1", 1, "not a Parquet file"),
        ("a.csv", None, 2, "no such file"),
    ],
)
def test_files_that_cannot_be_imported(
    tmp_path: Path, name: str, content: bytes | None, returncode: int, words: str
) -> None:
    """Wrong arguments exit with 2, wrong contents with 1, and the message says what to do."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CommandError) as error:
        run_import(tmp_path / name)
    assert error.value.returncode == returncode
    assert words in str(error.value)


def test_wrong_arguments(tmp_path: Path) -> None:
    """A directory, an unknown field and a rejects file over the input are usage errors."""
    file = csv_file(tmp_path / "a.csv", row(1))
    for arguments in (
        (tmp_path,),
        (file, "--map", "price=AMT"),
        (file, "--map", "amount"),
        (file, "--map", "amount=AMT"),
        (file, "--rejects", str(file)),
        (file, "--delimiter", "ab"),
    ):
        with pytest.raises(CommandError) as error:
            run_import(*arguments)
        assert error.value.returncode == 2, arguments


def test_parquet_columns_of_a_type_that_cannot_serve_are_a_usage_error(tmp_path: Path) -> None:
    """A whole number is no time: seconds or milliseconds, nobody knows."""
    ids = pa.array(["1"])
    file = _parquet(
        tmp_path / "a.parquet",
        transaction_id=ids,
        occurred_at=pa.array([1]),
        customer_id=ids,
        merchant_id=ids,
        amount=ids,
    )
    with pytest.raises(CommandError, match="occurred_at needs a timestamp") as error:
        run_import(file)
    assert error.value.returncode == 2


def test_rejects_fail_only_when_asked_or_when_nothing_is_left(tmp_path: Path) -> None:
    """One bad row among good ones is a warning, with --strict a failure; only bad rows are always one."""
    file = csv_file(tmp_path / "a.csv", row(1), row(2, amount="x"))
    assert run_import(file)["rejected"] == 1
    with pytest.raises(CommandError, match="line 3, amount") as error:
        run_import(file, "--strict")
    assert error.value.returncode == 1
    with pytest.raises(CommandError, match="not one row"):
        run_import(csv_file(tmp_path / "b.csv", row(2, amount="x")))


def test_a_shift_moves_by_whole_weeks_and_is_kept(tmp_path: Path) -> None:
    """The newest row falls into the last week; a second run moves as the first did, although time has passed."""
    file = csv_file(tmp_path / "a.csv", row(1, at="2018-06-18 00:00:15"), row(2, at="2018-08-14 23:59:43"))
    now = datetime.now(UTC)
    result = run_import(file, "--shift-to-now")
    newest = Transaction.objects.get(id="t2").occurred_at
    assert now - timedelta(days=7) <= newest <= datetime.now(UTC)
    assert result["shifted_by_s"] % (7 * 86_400) == 0
    assert newest - datetime(2018, 8, 14, 23, 59, 43, tzinfo=UTC) == timedelta(seconds=result["shifted_by_s"])

    earlier = timedelta(weeks=3)
    for transaction in Transaction.objects.all():
        Transaction.objects.filter(id=transaction.id).update(occurred_at=transaction.occurred_at - earlier)
    again = run_import(file, "--shift-to-now")
    assert (again["already_known"], again["shifted_by_s"]) == (2, result["shifted_by_s"] - earlier.total_seconds())


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_import_is_finished_by_the_next(tmp_path: Path, how: signal.Signals) -> None:
    """Whole chunks stay when the process dies; the next run loads the rest and nothing twice."""
    total, chunk = 20_000, 100
    file = csv_file(tmp_path / "a.csv", *(f"t{n},2026-01-01,c{n % 9},m{n % 7},1.00,EUR,0" for n in range(total)))
    database = connection.settings_dict
    url = "postgresql://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**database)
    importing = subprocess.Popen(
        [sys.executable, "manage.py", "import_transactions", str(file), "--chunk-rows", str(chunk)],
        cwd=settings.BASE_DIR,
        env={**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "mlserve.settings.test"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert importing.stderr is not None
    while (first_line := importing.stderr.readline()).startswith("amounts:"):
        pass  # the file is read through once before anything is loaded
    assert first_line.startswith("import: 0 %"), first_line + importing.stderr.read()
    importing.send_signal(how)
    _out, told = importing.communicate()
    loaded = Transaction.objects.count()
    assert 0 < loaded < total
    assert loaded % chunk == 0
    if how is signal.SIGINT:
        assert importing.returncode == 1
        assert "interrupted" in told
    result = run_import(file)
    assert (result["imported"], result["already_known"]) == (total - loaded, loaded)
    assert Transaction.objects.count() == total
