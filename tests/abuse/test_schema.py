"""A client that knows nothing but the served OpenAPI document: whatever it sends, it gets what the document allows.

Schemathesis generates requests that fit the document and requests that do not. The header `X-Data-Version` is left out
of what it is told: what it takes is signed by the service, and no schema describes that.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlserve.settings.base import BASE_DIR
from tests.abuse.raw_http import KEY, request
from tests.abuse.schema_hooks import REPLACED
from tests.fixtures.web_process import WebProcess

PROGRAM = Path(sys.executable).parent / "schemathesis"


def test_a_few_hundred_requests(service: WebProcess, tmp_path: Path) -> None:
    """The same in every run: no failure of the service, no answer that the document does not allow."""
    options = ("--max-examples=12", "--phases=examples,coverage,fuzzing", "--generation-deterministic")
    report = _explore(service, _document(service), tmp_path, *options)
    _check(report, at_least=300)


@pytest.mark.torture
@pytest.mark.timeout(1_800)
def test_ten_thousand_requests(service: WebProcess, tmp_path: Path) -> None:
    """Others in every run, and sequences of them; a failure is shown with the curl that repeats it."""
    _check(_explore(service, _document(service), tmp_path, "--max-examples=900"), at_least=10_000)


def test_a_document_that_promises_too_much_is_found_out(service: WebProcess, tmp_path: Path) -> None:
    """So that the other tests are not silent because nobody looks."""
    document = _document(service)
    document["components"]["schemas"]["ModelShown"]["properties"]["version"] = {"type": "string"}
    report = _explore(service, document, tmp_path, "--max-examples=1", "--phases=coverage", "--include-path=/v1/models")
    assert report["exit_code"] == 1
    assert [failure["operations"] for failure in report["failures"]] == [["GET /v1/models"]]


def _document(service: WebProcess) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(request(service.port, "GET /openapi.json").body)
    for operations in document["paths"].values():
        for operation in operations.values():
            parameters = operation.get("parameters", [])
            operation["parameters"] = [one for one in parameters if one["name"] != "X-Data-Version"]
    return document


def _explore(service: WebProcess, document: dict[str, Any], place: Path, *options: str) -> dict[str, Any]:
    (place / "openapi.json").write_text(json.dumps(document))
    command = [str(PROGRAM), "run", "openapi.json", f"--url=http://127.0.0.1:{service.port}", f"--header={KEY}"]
    command += ["--checks=all", f"--exclude-checks={','.join(REPLACED)}", "--continue-on-failure", "--no-color"]
    command += ["--report=json", "--report-json-path=report.json", *options]
    run = subprocess.run(
        command,
        cwd=place,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.abuse.schema_hooks", "PYTHONPATH": str(BASE_DIR)},
        capture_output=True,
        text=True,
    )
    print(run.stdout, run.stderr)
    report: dict[str, Any] = json.loads((place / "report.json").read_text())
    return report


def _check(report: dict[str, Any], *, at_least: int) -> None:
    assert (report["failures"], report["errors"], report["exit_code"]) == ([], [], 0)
    operations = report["operations"]
    assert operations["tested"] == operations["total"] >= 10
    assert report["test_cases"]["generated"] >= at_least
    scored = sum(rate["accepted"] for rate in report["valid_rates"]["POST /v1/scores"].values())
    assert scored > 20, "nearly everything was refused: that proves little"
