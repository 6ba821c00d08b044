"""What the doctor says of the TTL policies, of the features' age, of the relay and of the database's own guards."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from django.db.models import Max, Min
from django.utils import timezone

from features.definitions import EMBEDDING_BUILD, EMBEDDINGS, GROUPS
from features.guards import LEDGER_TRIGGERS, TRIGGERS, broken_guards
from features.models import FeatureRow, PolicyRevision, TtlPolicy
from features.outdated import EMBEDDINGS_EVERY, Waiting, waiting
from features.policies import is_proven, nonsense, policies_copy, rows_of
from mlserve.local_copy import Unusable, moment
from mlserve.platform.diagnosis import Finding, Level
from mlserve.platform.proof import read_proof, why_unproven

RELAY_LATE_S = 1.0
"""Twenty ticks."""
CATCHING_UP_LATE_S = 60.0
"""The task runs every five seconds; a large import may take it longer, and then this says so."""


def diagnose_policies() -> Iterator[Finding]:
    """Every group needs a policy; a streaming group in L1 shows other processes' writes late."""
    policies = {policy.name: policy for policy in TtlPolicy.objects.all()}
    missing = sorted(set(GROUPS) - set(policies))
    if missing:
        yield _finding("policies", Level.FAIL, f"none for {', '.join(missing)}", "run `manage.py migrate`")
        return
    wrong = nonsense(rows_of(policies.values()))
    if wrong:
        fix = "correct the row in the admin, or by SQL"
        yield _finding("policies", Level.FAIL, f"makes no sense: {'; '.join(wrong)}", fix)
        return
    in_l1 = [
        name
        for name, group in GROUPS.items()
        if group.cadence == "streaming" and policies[name].use_l1 and not is_proven(policies[name])
    ]
    version = PolicyRevision.objects.values_list("id", flat=True).first()
    if in_l1:
        yield _finding(
            "policies",
            Level.WARN,
            f"version {version}; {', '.join(in_l1)} is kept in L1, where writes of other processes are seen late",
            "take L1 out of the policy in the admin",
        )
    else:
        yield _finding("policies", Level.OK, f"version {version}, {len(policies)} policies in force")


def diagnose_policies_copy() -> Iterator[Finding]:
    """What a process that starts on this host while PostgreSQL is away would obey."""
    try:
        kept = policies_copy().read()
    except FileNotFoundError:
        detail = "none on this host: what starts while PostgreSQL is away obeys the defaults"
        yield _finding("policies copy", Level.OK, detail)
    except (OSError, Unusable) as error:
        fix = "a running web process replaces it within a minute, if the disk takes it; else look at its log"
        yield _finding("policies copy", Level.WARN, f"cannot be used: {error}", fix)
    else:
        detail = f"version {kept.content.version}, as of {moment(kept.confirmed_at)}"
        yield _finding("policies copy", Level.OK, detail)


def diagnose_features() -> Iterator[Finding]:
    """Batch and static groups must have been built within their limits, both embeddings by one build."""
    now = timezone.now()
    oldest = dict(FeatureRow.objects.filter(deleted_at=None).values_list("group").annotate(Min("as_of")))
    limits_s = dict(TtlPolicy.objects.values_list("name", "fresh_for_s"))
    built = [group.name for group in GROUPS.values() if group.cadence != "streaming"]
    never = [name for name in built if name not in oldest]
    if never:
        yield _finding("features", Level.WARN, f"never built: {', '.join(never)}", "run `manage.py build_features`")
    late = [name for name in built if name in oldest and _age_s(oldest[name], now) > limits_s.get(name, float("inf"))]
    if late:
        yield _finding(
            "features",
            Level.WARN,
            f"older than their policies allow, so flagged stale: {', '.join(late)}",
            "run `manage.py build_features`, and keep a worker and beat running",
        )
    unrelated = not never and _embeddings_are_unrelated()
    if unrelated:
        yield _finding(
            "features",
            Level.WARN,
            "the customers' and the merchants' embeddings are of two builds, so every affinity is its default, flagged",
            f"run `manage.py build_features --groups {','.join(EMBEDDINGS)}`",
        )
    if not never and not late and not unrelated:
        yield _finding("features", Level.OK, f"{len(built)} groups built within their limits")


def _embeddings_are_unrelated() -> bool:
    """Whether the newest rows of both sides have different numbers, or none. Older rows may be of older builds."""
    numbers = set()
    for group in EMBEDDINGS:
        place = [stored.name for stored in GROUPS[group].values].index(EMBEDDING_BUILD)
        rows = FeatureRow.objects.filter(group=group, deleted_at=None).order_by()
        builds = rows.values_list(f"values__{place}").annotate(newest=Max("as_of"))
        numbers.add(max(builds, key=lambda build: build[1])[0])
    return len(numbers) > 1 or not all(numbers)


def diagnose_relay() -> Iterator[Finding]:
    """A relay moves the watermarks on many times a second; as old as the oldest of them is what the cache can prove."""
    proof, now = read_proof(), timezone.now().timestamp()
    problem = why_unproven(proof, now=now, bound_s=RELAY_LATE_S)
    fix = "keep `manage.py relay` running, two of them in production"
    if proof.error:
        yield _finding("relay", Level.WARN, "not examined: the cache does not answer", "mend that first")
    elif proof.foreign:
        fix = "give all processes the same MLSERVE_CACHE_MAC_KEY, relays too; a relay then replaces what is not ours"
        yield _finding("relay", Level.WARN, problem, fix)
    elif proof.oldest is None:
        yield _finding("relay", Level.WARN, problem, fix)
    else:
        oldest = proof.oldest
        detail = f"watermark {now - oldest.safe_time:,.2f} s old, by relay {oldest.relay}, epoch {oldest.epoch}"
        yield _finding("relay", Level.WARN if problem else Level.OK, detail, fix if problem else "")


def diagnose_ledger() -> Iterator[Finding]:
    """Features that are behind the ledger are served flagged, and a worker derives them anew within seconds."""
    now, behind = timezone.now(), waiting()
    if not behind:
        yield _finding("ledger", Level.OK, "no feature is behind it")
        return
    embeddings = [of for of in behind if of.group in EMBEDDINGS]
    others = [of for of in behind if of.group not in EMBEDDINGS]
    if others:
        level = Level.WARN if any(_age_s(of.since, now) > CATCHING_UP_LATE_S for of in others) else Level.OK
        fix = "keep a worker and beat running, or run `manage.py build_features`" if level is Level.WARN else ""
        yield _finding("ledger", level, f"behind it, so flagged stale: {_in_words(others, now)}", fix)
    if embeddings:
        late = any(_age_s(of.since, now) > 2 * EMBEDDINGS_EVERY.total_seconds() for of in embeddings)
        fix = f"run `manage.py build_features --groups {','.join(EMBEDDINGS)}`" if late else ""
        detail = f"behind it until their next build, so flagged stale: {_in_words(embeddings, now)}"
        yield _finding("ledger", Level.WARN if late else Level.OK, detail, fix)


def _in_words(behind: Sequence[Waiting], now: datetime) -> str:
    return ", ".join(f"{of.group} of {of.entities:,} entities for {_age_s(of.since, now):,.0f} s" for of in behind)


def diagnose_guards() -> Iterator[Finding]:
    """Triggers, sequence and commits of feature rows: without them changes escape the cache."""
    broken = broken_guards()
    for guard in broken:
        yield _finding("guards", Level.FAIL, guard.problem, guard.fix)
    if not broken:
        detail = (
            f"{len(TRIGGERS)} triggers of the feature rows and {len(LEDGER_TRIGGERS)} of the ledger fire always, "
            "versions only grow, commits are synchronous"
        )
        yield _finding("guards", Level.OK, detail)


def _age_s(moment: datetime, now: datetime) -> float:
    return (now - moment).total_seconds()


def _finding(subject: str, level: Level, detail: str, fix: str = "") -> Finding:
    return Finding(subject=subject, level=level, detail=detail, fix=fix)
