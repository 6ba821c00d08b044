"""Live traffic: requests at a rate that does not depend on the answers, and what each answer tells.

Each request has its moment and is sent then by whichever of many threads is free (an open loop, as in
`benchmarks/open_loop.py`, which reads no bodies and holds no broken connection against nobody).
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.torture.bad_day.conduct import SCORES, Answer, Conduct
from tests.torture.bad_day.ledger import Attempt, LabelTold, Ledger, Told
from tests.torture.bad_day.requests import Request, Requests, Transaction
from tests.torture.bad_day.web_client import NoAnswer, NoConnection, Reply, TimedOut, WebClient

THREADS = 120
"""More than the requests that wait at once when everything times out at 10 s and one in three is a score."""
_TAG = re.compile(rb"<[^>]*>")
ASK_AGAIN = "same request again"
"""What an answer says that leaves open whether the decision stands."""


@dataclass(frozen=True)
class _Due:
    request: Request
    web: int


class Traffic:
    """From `start` to `stop`. `clock` says the seconds of the day."""

    def __init__(
        self,
        *,
        webs: Sequence[WebClient],
        requests: Requests,
        per_second: float,
        random: Random,
        ledger: Ledger,
        conduct: Conduct,
        clock: Callable[[], float],
    ) -> None:
        self._webs = webs
        self._requests = requests
        self._per_second = per_second
        self._random = random
        self._ledger = ledger
        self._conduct = conduct
        self._clock = clock
        self._due: queue.SimpleQueue[_Due | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, name=f"client-{n}", daemon=True) for n in range(THREADS)]
        self._dealer = threading.Thread(target=self._deal, name="dealer", daemon=True)
        self.sent = 0

    def start(self) -> None:
        for thread in [*self._threads, self._dealer]:
            thread.start()

    def stop(self) -> None:
        """Returns when every request is answered or given up."""
        self._stop.set()
        self._dealer.join()
        for _ in self._threads:
            self._due.put(None)
        for thread in self._threads:
            thread.join()

    def ask(self, request: Request, *, web: int) -> Reply | None:
        """One request now, from the caller's thread, remembered like all others. None without an answer."""
        client, sent_at, began = self._webs[web], self._clock(), time.monotonic()
        reply: Reply | None = None
        failure: Exception | None = None
        try:
            if request.kind == "page":
                reply = client.page(request.path)
            else:
                reply = client.ask(request.method, request.path, request.body)
        except (NoConnection, NoAnswer) as error:
            failure = error
        seconds = time.monotonic() - began
        self._note(request, web=web, sent_at=sent_at, seconds=seconds, reply=reply, failure=failure)
        return reply

    # --- threads ---

    def _deal(self) -> None:
        due = time.monotonic()
        for request in self._requests:
            due += self._random.expovariate(self._per_second)
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            self._due.put(_Due(request, self._random.randrange(len(self._webs))))
            self.sent += 1

    def _work(self) -> None:
        while (due := self._due.get()) is not None:
            try:
                self.ask(due.request, web=due.web)
            except Exception as error:
                self._conduct.complain("harness", f"{due.request.path}: {error!r}", at=self._clock())

    # --- what an answer tells ---

    def _note(
        self,
        request: Request,
        *,
        web: int,
        sent_at: float,
        seconds: float,
        reply: Reply | None,
        failure: Exception | None,
    ) -> None:
        document = _document(reply)
        common = {"sent_at": sent_at, "answered_at": sent_at + seconds, "under": self._conduct.under, "web": web}
        attempts = _attempts(request, reply, document, failure, common)
        for attempt in attempts:
            self._ledger.note(attempt)
        whole = Answer(
            kind=request.kind,
            what=_what(request),
            web=web,
            sent_at=sent_at,
            seconds=seconds,
            status=reply.status if reply is not None else None,
            code=str(document.get("code", "")),
            problem=str(document.get("detail", "")) if failure is None else str(failure),
            retry_after=reply is not None and "retry-after" in reply.headers,
            timed_out=isinstance(failure, TimedOut),
            spooled=request.kind not in ("find", "batch")
            and any(attempt.spooled and not attempt.replayed for attempt in attempts),
            customers=tuple(transaction["customer_id"] for transaction in request.transactions),
        )
        self._conduct.examine(whole)
        for answer in _items(whole, request, document):
            self._conduct.examine(answer)
        if request.kind == "label" and reply is not None and reply.status == 200:
            self._note_labels(request, document, sent_at)
        if reply is not None and reply.status == 404 and request.concerns:
            self._miss(request, sent_at)

    def _note_labels(self, request: Request, document: dict[str, Any], sent_at: float) -> None:
        for label, result in zip(request.labels, document["results"], strict=True):
            if result.get("outcome") in ("recorded", "superseded"):
                told = LabelTold(**label, sent_at=sent_at, under=self._conduct.under)
                self._ledger.note_label(told)

    def _miss(self, request: Request, sent_at: float) -> None:
        """404 for a decision that PostgreSQL had taken before it was asked."""
        decided = self._ledger.certain(request.concerns)
        if decided is not None and decided.answered_at < sent_at:
            detail = f"{request.concerns} was decided at {decided.sent_at:.1f} s"
            self._conduct.complain("not found", detail, at=sent_at)


def _document(reply: Reply | None) -> dict[str, Any]:
    if reply is None:
        return {}
    try:
        found = reply.json
    except ValueError:
        return {"detail": " ".join(_TAG.sub(b" ", reply.body).decode("utf-8", "replace").split())[:200]}
    return found if isinstance(found, dict) else {}


def _attempts(
    request: Request,
    reply: Reply | None,
    document: dict[str, Any],
    failure: Exception | None,
    common: dict[str, Any],
) -> list[Attempt]:
    if request.kind == "find":
        if reply is None or reply.status != 200:
            return []
        return [_attempt(request.concerns, 200, document, kind="find", common=common)]
    if request.kind not in SCORES:
        return []
    if reply is None:
        told = Told.REFUSED if isinstance(failure, NoConnection) else Told.UNKNOWN
        return [
            Attempt(
                transaction_id=transaction["transaction_id"],
                told=told,
                kind=request.kind,
                amount=transaction["amount"],
                customer_id=transaction["customer_id"],
                detail=str(failure),
                **common,
            )
            for transaction in request.transactions
        ]
    if request.kind != "batch":
        (transaction,) = request.transactions
        replayed = "idempotent-replayed" in reply.headers
        return [_scored(transaction, reply.status, document, kind=request.kind, replayed=replayed, common=common)]
    if reply.status != 200:
        return [
            _scored(transaction, reply.status, document, kind="batch", replayed=False, common=common)
            for transaction in request.transactions
        ]
    return [
        _scored(
            transaction,
            result["status"],
            result.get("answer") or result.get("problem") or {},
            kind="batch",
            replayed=bool(result.get("replayed")),
            common=common,
        )
        for transaction, result in zip(request.transactions, document["results"], strict=True)
    ]


def _scored(
    transaction: Transaction,
    status: int,
    document: dict[str, Any],
    *,
    kind: str,
    replayed: bool,
    common: dict[str, Any],
) -> Attempt:
    return _attempt(
        transaction["transaction_id"],
        status,
        document,
        kind=kind,
        common={
            **common,
            "amount": transaction["amount"],
            "customer_id": transaction["customer_id"],
            "replayed": replayed,
        },
    )


def _attempt(
    transaction_id: str, status: int, document: dict[str, Any], *, kind: str, common: dict[str, Any]
) -> Attempt:
    detail = str(document.get("detail", ""))
    if status == 200:
        told = Told.DECIDED
    elif status == 422:
        told = Told.CONFLICT
    elif status == 503 and ASK_AGAIN not in detail:
        told = Told.REFUSED
    else:
        told = Told.UNKNOWN
    return Attempt(
        transaction_id=transaction_id,
        told=told,
        kind=kind,
        score=document.get("score"),
        decision=document.get("decision", ""),
        reasons=tuple(document.get("degraded_reasons", ())),
        detail=detail if status != 200 else "",
        **common,
    )


def _items(whole: Answer, request: Request, document: dict[str, Any]) -> list[Answer]:
    """The results of a list, each as an answer of its own, but for those that need no second look."""
    if whole.status != 200 or request.kind not in ("batch", "label"):
        return []
    good = (200, 422) if request.kind == "batch" else (200, 404)
    found = []
    for place, result in enumerate(document["results"]):
        flags = result.get("answer", {}).get("degraded_reasons", ())
        spooled = "decision_spooled" in flags and not result.get("replayed")
        if result["status"] in good and not spooled:
            continue
        problem = result.get("problem", {})
        found.append(
            Answer(
                kind=request.kind,
                what=f"{whole.what}, item {place}",
                web=whole.web,
                sent_at=whole.sent_at,
                seconds=0.0,
                status=200 if result["status"] in good else result["status"],
                code=problem.get("code", ""),
                problem=problem.get("detail", ""),
                retry_after=True,
                spooled=spooled,
                customers=(request.transactions[place]["customer_id"],) if request.transactions else (),
            )
        )
    return found


def _what(request: Request) -> str:
    if request.transactions:
        first = request.transactions[0]
        more = f" and {len(request.transactions) - 1} more" if len(request.transactions) > 1 else ""
        return f"{first['transaction_id']} (customer {first['customer_id']}){more}"
    return request.path
