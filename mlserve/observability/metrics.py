"""Every metric, declared once. Names and labels follow the words of the design; units stand in the names.

Processes of one host share the files of `PROMETHEUS_MULTIPROC_DIR`; `/metrics` and the console add them up.
The engine does not touch these on the hot path: `observability/recorder.py` counts in plain integers and
adds them here once a second.
"""

from prometheus_client import Counter, Gauge, Histogram

LATENCY_BUCKETS_S = (
    0.000001, 0.0000025, 0.000005, 0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
AGE_BUCKETS_S = (
    1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1200, 1800, 2700,
    3600, 5400, 2 * 3600, 3 * 3600, 4 * 3600, 6 * 3600, 9 * 3600, 12 * 3600, 24 * 3600, 48 * 3600, 72 * 3600,
)  # fmt: skip
"""Fine between 10 minutes and hours, where batch features live; the default limits of all policies are among them."""

STALENESS_BUCKETS_S = (0, 1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600)

CACHE_HITS = Counter("mlserve_cache_hits_total", "Keys answered by a tier.", ["tier", "namespace"])
CACHE_MISSES = Counter("mlserve_cache_misses_total", "Keys not answered by a tier.", ["tier", "namespace", "reason"])
CACHE_LATENCY = Histogram(
    "mlserve_cache_tier_seconds",
    "Time of one look-up of a tier, all its keys together; L1: every 16th.",
    ["tier", "namespace"],
    buckets=LATENCY_BUCKETS_S,
)
CACHE_LATE = Counter(
    "mlserve_cache_late_total", "Keys served after a miss, by another's load or from a spare copy.", ["namespace"]
)
CACHE_EVENTS = Counter("mlserve_cache_events_total", "What protects the source, at work.", ["event"])
L3_IN_USE = Gauge("mlserve_l3_reads_in_use", "Reads of Postgres under way.", multiprocess_mode="livesum")
L3_REFUSED = Counter("mlserve_l3_reads_refused_total", "Reads of Postgres that found no place under the cap.")
L2_OVERSIZED = Counter("mlserve_l2_oversized_removed_total", "Values under our names too large to be ours, removed.")
CACHE_WRITES_REFUSED = Counter("mlserve_cache_fill_refused_total", "Copies that were not stored.", ["tier", "reason"])
CACHE_EVICTIONS = Counter(
    "mlserve_cache_evictions_total", "Entries pushed out of L1 by newer ones.", ["tier", "namespace"]
)
CHAIN_GAPS = Counter(
    "mlserve_cache_chain_gaps_total", "Times that a process emptied a partition of L1, not having heard every batch."
)
L1_ENTRIES = Gauge("mlserve_l1_entries", "Entries in L1.", multiprocess_mode="livesum")
L1_BYTES = Gauge("mlserve_l1_bytes", "Estimated size of L1.", multiprocess_mode="livesum")
BREAKER_OPEN = Gauge(
    "mlserve_breaker_open", "0 closed, 0.5 half-open, 1 open; one per process.", ["tier"], multiprocess_mode="liveall"
)
BREAKER_OPENED = Counter("mlserve_breaker_opened_total", "Times that a breaker opened.", ["tier"])
SOURCE_LOADS = Counter("mlserve_source_loads_total", "Keys read from Postgres on a miss.", ["namespace"])
SOURCE_ERRORS = Counter("mlserve_source_errors_total", "Reads of Postgres that failed.", ["reason"])
EMBEDDING_BUILDS_DIFFER = Counter(
    "mlserve_embedding_builds_differ_total", "Scores whose affinity was its default: the embeddings were of two builds."
)
FEATURE_AGE = Histogram(
    "mlserve_feature_age_seconds", "Age of the feature groups behind scores.", ["namespace"], buckets=AGE_BUCKETS_S
)
FEATURES_STALE = Counter(
    "mlserve_features_stale_total", "Feature groups served past their limit, flagged.", ["namespace"]
)
FEATURES_OUTDATED = Gauge(
    "mlserve_features_outdated",
    "Entities of a group whose part of the ledger changed and whose row does not follow yet.",
    ["namespace"],
    multiprocess_mode="livemostrecent",
)
FEATURES_OUTDATED_AGE = Gauge(
    "mlserve_features_outdated_age_seconds",
    "For how long the first of them has been behind the ledger; 0 if none is.",
    ["namespace"],
    multiprocess_mode="livemostrecent",
)
FEATURES_DEFAULTED = Counter("mlserve_features_defaulted_total", "Feature groups served as defaults.", ["namespace"])

BLOOM_ANSWERS = Counter(
    "mlserve_bloom_answers_total", "Entities that the filter of existing ids was asked for.", ["kind", "answer"]
)
BLOOM_EVENTS = Counter("mlserve_bloom_events_total", "What happened to the filters of existing ids.", ["event"])
BLOOM_USABLE = Gauge(
    "mlserve_bloom_usable", "1 if a process believes its filters of existing ids.", multiprocess_mode="liveall"
)

SCORES = Counter("mlserve_scores_total", "Scores given.", ["decision", "degraded"])
SCORES_COLD_START = Counter(
    "mlserve_scores_cold_start_total",
    "Scores of a customer or merchant of whom nothing is known yet in some feature group.",
    ["decision"],
)
SCORE_LATENCY = Histogram("mlserve_score_seconds", "Time of a score without HTTP.", buckets=LATENCY_BUCKETS_S)
JOURNAL_COMMIT = Histogram(
    "mlserve_journal_commit_seconds", "Time of one group commit of decisions.", buckets=LATENCY_BUCKETS_S
)
JOURNAL_BATCH = Histogram(
    "mlserve_journal_batch_decisions", "Decisions per group commit.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
JOURNAL_CONTENTION = Counter(
    "mlserve_journal_contention_total", "Group commits that met a lock of somebody else and went on without who has it."
)
JOURNAL_SPOOLED = Counter("mlserve_journal_spooled_total", "Decisions written to the spool, Postgres being away.")
SPOOL_FAILED = Counter("mlserve_spool_failed_total", "Times that the spool could not be written: answered with 503.")
SPOOL_DELIVERED = Counter("mlserve_spool_delivered_total", "Decisions of the spool that PostgreSQL has taken.")
SPOOL_REFUSED = Counter(
    "mlserve_spool_refused_total", "Lines of the spool that were moved to the refused file.", ["reason"]
)
SPOOL_FORGOTTEN = Counter(
    "mlserve_spool_forgotten_total", "Spooled decisions that a process no longer recognises, having too many of them."
)
# Read out of the spool's folder at each scrape: they are the host's, not a process's. They have labels, because
# prometheus-client writes a value of this process for a gauge without.
SPOOL_DECISIONS = Gauge("mlserve_spool_decisions", "Decisions in the spool.", ["state"])
SPOOL_BYTES = Gauge("mlserve_spool_bytes", "Bytes in the spool.", ["state"])
SPOOL_OLDEST = Gauge("mlserve_spool_oldest_seconds", "Since when the oldest decision waits in the spool.", ["state"])

LABELS = Counter("mlserve_labels_total", "Labels reported for transactions, by what became of each.", ["outcome"])

WRITE_BEHIND_APPENDED = Counter(
    "mlserve_write_behind_batches_appended_total", "Batches that processes appended to the stream."
)
WRITE_BEHIND_FLUSHED = Counter(
    "mlserve_write_behind_batches_flushed_total", "Batches that a worker took from the stream.", ["outcome"]
)
WRITE_BEHIND_DROPPED = Counter("mlserve_write_behind_dropped_total", "What was not counted, and why.", ["reason"])
WRITE_BEHIND_LAG = Gauge(
    "mlserve_write_behind_lag_seconds",
    "Age of the oldest batch in the stream.",
    multiprocess_mode="livemostrecent",
)

RELAY_LAG = Gauge(
    "mlserve_relay_lag_seconds",
    "Age of what the cache has been told last of the changes in Postgres; the oldest partition's.",
    multiprocess_mode="livemostrecent",
)
RELAY_BATCHES = Counter(
    "mlserve_relay_batches_total", "Steps of a partition's watermark, those without a change included."
)
RELAY_KEYS = Counter("mlserve_relay_keys_total", "Changed keys that L2 was told of.")
RELAY_CHAIN_RACES = Counter(
    "mlserve_relay_chain_races_total", "Steps refused because the watermark was not the one they built on."
)
CACHE_EPOCH = Gauge(
    "mlserve_cache_epoch", "Copies of another one are void.", ["partition"], multiprocess_mode="livemostrecent"
)

CONSISTENCY_CHECKED = Counter(
    "mlserve_consistency_checked_total",
    "Places where the inspector looked whether a copy has a write.",
    ["tier", "horizon"],
)
INCONSISTENT = Counter(
    "mlserve_inconsistent_total",
    "Copies that would have been served and were not what Postgres says.",
    ["tier", "horizon", "cause"],
)
STALENESS = Histogram(
    "mlserve_staleness_seconds",
    "Since when the newest write was missing from a copy that the inspector found; 0: it was not.",
    ["namespace"],
    buckets=STALENESS_BUCKETS_S,
)
INSPECTION_SKIPPED = Counter(
    "mlserve_inspection_skipped_total", "Times that the inspector passed lines of the journal over.", ["reason"]
)
INSPECTION_LAG = Gauge(
    "mlserve_inspection_lag_seconds",
    "For how long the oldest write that was not looked at has been due.",
    multiprocess_mode="livemostrecent",
)

LOCAL_COPIES = Counter(
    "mlserve_local_copies_total",
    "Copies of PostgreSQL's words on this host's disk, written and read.",
    ["copy", "outcome"],
)
UNCONFIRMED = Gauge(
    "mlserve_unconfirmed",
    "1 if a process serves what PostgreSQL does not say is in force: from the disk, or the one before.",
    ["what"],
    multiprocess_mode="liveall",
)
SKEW_DECISIONS = Counter(
    "mlserve_skew_decisions_total", "Journalled decisions drawn to be compared with training.", ["outcome"]
)
SKEW_VALUES = Counter(
    "mlserve_skew_values_total",
    "Served values of features compared with those of training; differing: without a known reason.",
    ["feature", "outcome"],
)

RATE_LIMIT = Counter(
    "mlserve_rate_limit_total", "Requests refused by their key's limit, or decided without Redis.", ["outcome"]
)
ADMISSION_REFUSED = Counter(
    "mlserve_admission_refused_total", "Requests answered with 503 before anything was done for them.", ["reason"]
)
ADMISSION_WAIT = Histogram(
    "mlserve_admission_wait_seconds",
    "Time from a request's arrival until it was begun, of those that had to wait.",
    buckets=LATENCY_BUCKETS_S,
)

HTTP_REQUESTS = Counter("mlserve_http_requests_total", "Requests by route and status.", ["route", "method", "status"])
HTTP_LATENCY = Histogram("mlserve_http_request_seconds", "Time of a request.", ["route"], buckets=LATENCY_BUCKETS_S)

WARMED_KEYS = Counter("mlserve_warmed_keys_total", "Keys put into L2 ahead of a request.", ["source"])
