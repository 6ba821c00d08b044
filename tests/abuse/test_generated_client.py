"""A client that a stock generator makes out of the served document scores a transaction and reads a typed answer.

The generator is installed from the package index into an environment of its own, hence among the long tests.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.abuse.raw_http import request
from tests.fixtures.population import API_KEY
from tests.fixtures.web_process import WebProcess

GENERATOR = "openapi-python-client==0.29.1"
CONFIG = {"project_name_override": "fraud-client", "package_name_override": "fraud_client", "post_hooks": []}
SCRIPT = """
import sys
from datetime import datetime, timezone

from fraud_client import AuthenticatedClient
from fraud_client.api.features import list_policies, peek_features
from fraud_client.api.scores import get_score, score
from fraud_client.models import (
    EntityShown, PeekFeaturesEntity, PolicyList, Problem, RiskLevel, ScoreIncludeItem, ScoreRequest, ScoreResponse,
    ServedFeature, ServedModel,
)

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
transaction = ScoreRequest(
    transaction_id="generated-1",
    occurred_at=datetime.now(timezone.utc),
    customer_id="C1",
    merchant_id="M1",
    amount=20.5,
)
answer = score.sync(client=client, body=transaction, include=[ScoreIncludeItem.FEATURES, ScoreIncludeItem.REASONS])
assert isinstance(answer, ScoreResponse), answer
assert isinstance(answer.score, float) and 0 <= answer.score <= 1
assert isinstance(answer.risk_level, RiskLevel)
assert isinstance(answer.model, ServedModel) and answer.model.version >= 1
assert isinstance(answer.decided_at, datetime) and answer.decided_at.tzinfo is not None
assert len(answer.features) > 10 and all(isinstance(feature, ServedFeature) for feature in answer.features)

stored = get_score.sync("generated-1", client=client)
assert isinstance(stored, ScoreResponse) and stored.score == answer.score

detailed = get_score.sync_detailed("never-scored", client=client)
assert detailed.status_code == 404
assert isinstance(detailed.parsed, Problem) and detailed.parsed.code == "not_found", detailed

assert isinstance(list_policies.sync(client=client), PolicyList)
assert isinstance(peek_features.sync(PeekFeaturesEntity.CUSTOMER, "C1", client=client), EntityShown)

refused = score.sync(client=AuthenticatedClient(base_url=sys.argv[1], token="wrong"), body=transaction)
assert isinstance(refused, Problem) and refused.code == "unauthenticated", refused
print("typed")
"""


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_a_generated_client_reads_typed_answers(service: WebProcess, tmp_path: Path) -> None:
    """Answers, stored answers, lists and problems; nothing in the generated code is touched by hand."""
    environment = tmp_path / "environment"
    _run(sys.executable, "-m", "venv", str(environment))
    _run(str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", GENERATOR)
    (tmp_path / "openapi.json").write_bytes(request(service.port, "GET /openapi.json").body)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    generate = ("generate", "--path", "openapi.json", "--config", "config.json", "--output-path", "client")
    told = _run(str(environment / "bin" / "openapi-python-client"), *generate, "--fail-on-warning", cwd=tmp_path)
    assert "warning" not in told.lower()
    (tmp_path / "client" / "use.py").write_text(SCRIPT)
    address = f"http://127.0.0.1:{service.port}"
    used = _run(str(environment / "bin" / "python"), "use.py", address, API_KEY, cwd=tmp_path / "client")
    assert used.strip() == "typed"


def _run(*command: str, cwd: Path | None = None) -> str:
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
