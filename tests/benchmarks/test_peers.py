"""What `bench peers` decides without its peers: environments, the features that Feast is given, what counts as equal.

Nothing is installed here but a package of this test's own. The comparison itself runs when it is asked for.
"""

import ast
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import Barrier
from typing import Any
from zipfile import ZipFile

import pytest

from benchmarks import catalogue, suite
from benchmarks.contest import BenchmarkFailed
from benchmarks.peers.environment import LOCKS, installed
from benchmarks.peers.feast_peer import Feast, definitions, expected_of, named_rows, store_configuration
from benchmarks.peers.feature_list import FEATURES, groups_read, values_of
from benchmarks.peers.mlserver_peer import MLServer, Scored, model_settings, scores_in
from benchmarks.peers.server import in_requests, some_of
from benchmarks.peers.world import PeerWorld
from features.compute import VectorPlan
from features.definitions import ALL_FEATURES

PEERS = ("feast", "mlserver")


def _wheel(folder: Path, version: str) -> Path:
    """A package of one module, `smallpeer`, that says its version."""
    path = folder / f"smallpeer-{version}-py3-none-any.whl"
    info = f"smallpeer-{version}.dist-info"
    files = {
        "smallpeer.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: smallpeer\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def lock(tmp_path: Path) -> Callable[[str], None]:
    """Writes the lock of the peer `small`, with a version that lies beside it."""
    (tmp_path / "locks").mkdir()

    def write(version: str) -> None:
        wheel = _wheel(tmp_path, version)
        text = f"{wheel.as_uri()} --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n"
        (tmp_path / "locks" / "peer-small.lock").write_text(f"smallpeer @ {text}", "utf-8")

    return write


def _install(tmp_path: Path, said: list[str]) -> Path:
    return installed(
        "small",
        root=tmp_path / "peers",
        progress=lambda stage, _done: said.append(stage),
        locks=tmp_path / "locks",
    )


def _version_in(programs: Path) -> str:
    (module,) = programs.parent.glob("lib/python*/site-packages/smallpeer.py")
    return module.read_text("utf-8")


def test_an_environment_is_made_once(tmp_path: Path, lock: Callable[[str], None]) -> None:
    """The second call says and does nothing; another lock makes it anew."""
    said: list[str] = []
    lock("1.0")
    programs = _install(tmp_path, said)
    assert "1.0" in _version_in(programs) and (programs / "python").exists()
    assert _install(tmp_path, said) == programs
    assert len(said) == 1
    lock("2.0")
    assert "2.0" in _version_in(_install(tmp_path, said))
    assert len(said) == 2


def test_an_interrupted_environment_is_made_anew(tmp_path: Path, lock: Callable[[str], None]) -> None:
    """What has no stamp is not trusted."""
    said: list[str] = []
    lock("1.0")
    programs = _install(tmp_path, said)
    (programs.parent / "installed").unlink()
    _install(tmp_path, said)
    assert len(said) == 2


def test_two_at_once_make_one_environment(tmp_path: Path, lock: Callable[[str], None]) -> None:
    """The second waits for the first and finds what it made."""
    said: list[str] = []
    together = Barrier(2)

    def install(_number: int) -> Path:
        together.wait(10)
        return _install(tmp_path, said)

    lock("1.0")
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(install, range(2))
    assert first == second and len(said) == 1


def test_what_cannot_be_installed_is_said_with_the_remedy(
    tmp_path: Path, lock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both installers' own words and what they need; the next call tries again."""
    lock("1.0")
    closed = "http://127.0.0.1:1/simple"
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.setenv(name, closed)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    path = tmp_path / "locks" / "peer-small.lock"
    good = path.read_text("utf-8")
    path.write_text(f"no-such-package-of-mlserve==1.0 --hash=sha256:{'0' * 64}\n", "utf-8")
    with pytest.raises(BenchmarkFailed, match=r"peer-small\.lock cannot be installed") as refused:
        _install(tmp_path, [])
    for word in ("pip: ", "PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
        assert word in str(refused.value)
    path.write_text(good, "utf-8")
    assert "1.0" in _version_in(_install(tmp_path, []))


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, lock: Callable[[str], None]) -> None:
    """As a failed benchmark, not as a traceback."""
    lock("1.0")
    (tmp_path / "peers").write_text("a file", "utf-8")
    with pytest.raises(BenchmarkFailed, match="no environment for small"):
        _install(tmp_path, [])


@pytest.mark.parametrize("peer", PEERS)
def test_the_locks_name_no_host_and_every_file(peer: str) -> None:
    """Each package in one version, with hashes."""
    text = (LOCKS / f"peer-{peer}.lock").read_text("utf-8")
    assert "://" not in text
    for package in re.split(r"\n(?=\S)", text.strip()):
        assert "==" in package and "--hash=sha256:" in package, package


def test_mlserver_has_this_projects_scikit_learn() -> None:
    """Another version might compute something else."""
    found = [
        re.findall(r"^scikit-learn==\S+", (LOCKS / name).read_text("utf-8"), re.MULTILINE)
        for name in ("serve.lock", "peer-mlserver.lock")
    ]
    assert found[0] == found[1] != []


def test_feast_is_given_what_a_score_reads() -> None:
    """Fifty features of two entities: every group of the model, and none else."""
    assert sum(map(len, FEATURES.values())) == 50
    assert len({name for names in FEATURES.values() for name in names}) == 50
    assert {group.name for entity in FEATURES for group in groups_read(entity)} == set(VectorPlan(ALL_FEATURES).groups)


def test_the_feature_repository_has_a_view_for_each_entity() -> None:
    """With its features and no others, as Feast's own module says it."""
    lists = [
        ast.literal_eval(node.generators[0].iter)
        for node in ast.walk(ast.parse(definitions()))
        if isinstance(node, ast.ListComp)
    ]
    assert lists == list(FEATURES.values())


def test_values_stand_in_the_order_of_the_names() -> None:
    """The windows behind the start of the list that they derive from."""
    stored = {
        "customer_profile": (1.0, 2.0, 3.0),
        "customer_activity": (0.0, 5_000_000.0, 40.0, 7.0),
        "customer_embedding": tuple(map(float, range(16))),
    }
    named = dict(zip(FEATURES["customer"], values_of("customer", stored, at=5_000_001.0, amount=20.0), strict=True))
    assert named["customer_profile_amount_deviation"] == 3.0
    assert named["customer_activity_complete_from"] == 0.0
    assert (named["customer_count_1d"], named["customer_mean_amount_1d"]) == (2.0, 30.0)
    assert named["customer_embedding_e15"] == 15.0


@pytest.mark.parametrize(
    ("url", "connection"),
    [
        ("redis://:se%3Dcret@127.0.0.1:6390/15", "127.0.0.1:6390,db=15,password=se=cret"),
        ("redis://me:secret@cache/0", "cache:6379,db=0,username=me,password=secret"),
    ],
)
def test_feast_uses_the_same_database_of_redis(url: str, connection: str) -> None:
    """With its user and password, in Feast's own form."""
    configuration = json.loads(store_configuration(url))
    assert configuration["online_store"] == {"type": "redis", "connection_string": connection}
    assert configuration["registry"]["cache_ttl_seconds"] == 0


@pytest.mark.parametrize("url", ["rediss://cache:6379/1", "redis://:a%2Cb@cache:6379/1"])
def test_a_redis_that_feast_cannot_name_is_refused(url: str) -> None:
    """Before anything is started."""
    with pytest.raises(BenchmarkFailed, match="REDIS_CACHE_URL"):
        store_configuration(url)


def _answer_of_feast(*, customers: int = 2) -> bytes:
    """About two pairs; the first has no age."""
    return json.dumps(
        {
            "metadata": {"feature_names": ["customer_id", "amount", "age"]},
            "results": [
                {"values": ["C1", "C2"][:customers], "statuses": ["PRESENT"] * customers},
                {"values": [2.5, 3.5], "statuses": ["PRESENT", "PRESENT"]},
                {"values": [None, 7.0], "statuses": ["NOT_FOUND", "PRESENT"]},
            ],
        }
    ).encode()


def test_an_answer_of_feast_is_read_by_pair_and_name() -> None:
    """What it does not know is nothing, and no zero."""
    assert named_rows(_answer_of_feast(), rows=2) == [{"amount": 2.5, "age": None}, {"amount": 3.5, "age": 7.0}]


@pytest.mark.parametrize("rows", [1, 3])
def test_an_answer_of_feast_about_more_or_fewer_pairs_is_refused(rows: int) -> None:
    """Else a share of the work would count as all of it."""
    with pytest.raises(BenchmarkFailed, match=f"Feast answers 2 values of customer_id for {rows} pairs"):
        named_rows(_answer_of_feast(), rows=rows)


def test_each_column_of_feast_has_every_pair() -> None:
    """The ids as well."""
    with pytest.raises(BenchmarkFailed, match="Feast answers 1 values of customer_id for 2 pairs"):
        named_rows(_answer_of_feast(customers=1), rows=2)


def test_both_entities_features_are_expected_together() -> None:
    """Fifty by name."""
    rows = {entity: {"X1": tuple(map(float, range(len(names))))} for entity, names in FEATURES.items()}
    expected = expected_of(PeerWorld(rows, datetime(2026, 1, 1, tzinfo=UTC)), "X1", "X1")
    assert len(expected) == 50
    assert expected["customer_profile_first_seen"] == expected["merchant_profile_first_seen"] == 0.0


def test_an_answer_of_mlserver_is_each_rows_probability() -> None:
    """The second of two in each row; anything else is no answer, nor is one about more or fewer rows."""
    output = {"name": "predict_proba", "shape": [2, 2], "data": [0.75, 0.25, 0.5, 0.5]}
    assert scores_in(json.dumps({"outputs": [output]}).encode(), rows=2) == [0.25, 0.5]
    for wrong, rows in (
        ({**output, "name": "predict"}, 2),
        ({**output, "data": [0.75, 0.25]}, 2),
        (output, 1),
        (output, 3),
    ):
        with pytest.raises(BenchmarkFailed, match=f"MLServer answers {rows} rows with"):
            scores_in(json.dumps({"outputs": [wrong]}).encode(), rows=rows)


def _body(request: bytes) -> Any:
    return json.loads(request.partition(b"\r\n\r\n")[2])


def test_each_row_goes_to_the_peers_in_its_place() -> None:
    """In requests of one row as of many: Feast's columns and MLServer's tensor keep the order."""
    pairs = [("C1", "M1"), ("C2", "M2"), ("C3", "M3"), ("C4", "M4")]
    feast = Feast(port=0, world=PeerWorld({}, datetime(2026, 1, 1, tzinfo=UTC)), pairs=pairs)
    assert [_body(request)["entities"] for request in feast.requests(2)] == [
        {"customer_id": ["C1", "C2"], "merchant_id": ["M1", "M2"]},
        {"customer_id": ["C3", "C4"], "merchant_id": ["M3", "M4"]},
    ]
    assert len(_body(feast.requests(1)[3])["features"]) == 50
    mlserver = MLServer(port=0, scored=[Scored(features=(float(row), 0.5), score=0.0) for row in range(4)])
    tensors = [_body(request)["inputs"] for request in mlserver.requests(2)]
    assert [(one["shape"], one["data"]) for (one,) in tensors] == [
        ([2, 2], [0, 0.5, 1, 0.5]),
        ([2, 2], [2, 0.5, 3, 0.5]),
    ]
    assert [_body(request)["inputs"][0]["shape"] for request in mlserver.requests(1)] == [[1, 2]] * 4


def test_every_request_has_as_many_rows() -> None:
    """The last one goes on with the first rows: what is counted is what was asked for."""
    assert in_requests("abcde", size=2) == [["a", "b"], ["c", "d"], ["e", "a"]]


@pytest.mark.parametrize(("requests", "compared"), [(2, 2), (20, 20), (200, 20), (39, 39), (40, 20)])
def test_answers_are_compared_over_all_requests(requests: int, compared: int) -> None:
    """At least twenty of them, or all."""
    assert len(some_of(range(requests))) == compared


def test_batching_is_only_where_it_is_asked_for(tmp_path: Path) -> None:
    """Else MLServer is as it comes."""
    assert "max_batch_size" in model_settings(tmp_path, batched=True)
    assert "max_batch_size" not in model_settings(tmp_path, batched=False)


def test_peers_run_only_if_they_are_named() -> None:
    """They install hundreds of megabytes; every other benchmark runs by default."""
    assert [name for name in catalogue.BENCHMARKS if name not in suite.by_default()] == ["peers"]
    assert "peers" in suite.listed()
