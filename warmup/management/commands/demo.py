"""`manage.py demo`: servers, data, model, web, workers and traffic on this machine, until Ctrl-C."""

import json
import logging
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psutil
from django.conf import settings
from django.core.management.base import CommandError
from django.db import connection
from django.utils import timezone

from features import policies
from features.progress import shown
from features.transactions.population import Population, population_from_ledger
from features.transactions.simulate import LiveTraffic
from mlserve import embedded
from mlserve.cache import wiring
from mlserve.console.figures import collect_figures
from mlserve.errors import MlserveError
from mlserve.stopping import Stop, StopRequested, stop_on_signals
from warmup import run
from warmup.demo import prepare, recipes
from warmup.demo.arguments import DemoArguments, check_values
from warmup.demo.children import ChildFailed, Children, stop_leftovers
from warmup.demo.place import DemoPlace, free_port, wipe_metric_files
from warmup.demo.stages import Stages
from warmup.demo.status import status_line
from warmup.demo.welcome import base_url, first_score_text, welcome_text
from warmup.service_client import Reply, ServiceClient, Unreachable

READY_WITHIN_S = 60.0
STATUS_EVERY_S = 5.0
TEND_EVERY_S = 0.5
_ASK_S = 1.0
_FIRST_SEED, _SHOWN_SEED = 1_000_001, 1_000_002  # not the live traffic's: ids must not meet


class Command(DemoArguments):
    def handle(self, *args: Any, **options: Any) -> None:
        check_values(options, api_key=options["api_key"] or settings.API_KEY)
        place = DemoPlace(settings.VAR_DIR)
        try:
            with stop_on_signals() as stop, place.only_demo():
                stages = Stages(sys.stderr if options["json"] else sys.stdout, stop.check)
                children = Children(place.log_dir, place.record, stages.say)
                try:
                    self._run(place, stages, stop, children, options)
                except StopRequested:
                    pass
                except Exception:
                    if not stop.requested:  # else the interruption is what went wrong
                        raise
                finally:
                    stop.raises = False
                    children.stop()
                    _let_go_of_the_servers()
                    _stop_servers(stages)
        except StopRequested:
            raise KeyboardInterrupt from None  # before the demo had begun, or a second time just when it ended
        except MlserveError as error:
            raise CommandError(error.detail) from error

    def _run(self, place: DemoPlace, stages: Stages, stop: Stop, children: Children, options: dict[str, Any]) -> None:
        stop_leftovers(place.record)
        port = free_port(options["port"])
        wipe_metric_files(settings.METRICS_DIR)
        started = embedded.started_here()
        stages.done("servers", _age_s(), f"started: {', '.join(started)}" if started else "were running")
        try:
            api_key, password = _prepare_access(place, stages, options)
            _prepare_data(place, stages, options)
            # What follows keeps one processor busy; the web process uses the other to get ready. The relay goes before
            # the warm-up: what is put into a cache without watermarks cannot be proven fresh.
            stop.run_undisturbed(lambda: children.start(recipes.relay()))
            stop.run_undisturbed(lambda: children.start(recipes.web(port=port)))
            _prepare_scoring(stages)
            population = population_from_ledger(connection)
            _let_go_of_the_servers()
            stop.raises = False
            self._serve(children, stages, stop, options, _Access(port, api_key, password, population))
        finally:
            stop.raises = False
            stages.say("stopping ...")
            children.stop()

    def _serve(
        self, children: Children, stages: Stages, stop: Stop, options: dict[str, Any], access: "_Access"
    ) -> None:
        with stages.stage("web", f"waiting for {base_url(access.port)}"):
            _wait_until_ready(access.port, children, stop)
        if stop.requested:
            return
        client = ServiceClient(base_url(access.port), api_key=access.api_key)
        reply = _first_score(client, LiveTraffic(access.population, _FIRST_SEED).next(timezone.now()))
        client.close()
        first_score_s = _age_s()
        stages.say(f"FIRST SCORE  {first_score_s:5.1f} s  {first_score_text(reply)}")
        for recipe in recipes.workers_and_beat():
            children.start(recipe)
        if not options["no_traffic"]:
            children.start(recipes.live_traffic(port=access.port, api_key=access.api_key, per_second=options["rate"]))
        stages.say(
            welcome_text(
                port=access.port,
                api_key=access.api_key,
                admin_password=access.admin_password,
                transaction=LiveTraffic(access.population, _SHOWN_SEED).next(timezone.now()),
                log_dir=str(children.log_dir),
            )
        )
        if options["json"]:
            summary = {
                "url": base_url(access.port),
                "first_score_s": round(first_score_s, 2),
                "seconds": stages.seconds,
                "first_score": reply.document(),
            }
            self.stdout.write(json.dumps(summary))
            self.stdout.flush()
        _watch(children, stages, stop, duration_s=options["duration"])


@dataclass(frozen=True)
class _Access:
    """What it takes to use the demo."""

    port: int
    api_key: str
    admin_password: str
    population: Population


def _prepare_access(place: DemoPlace, stages: Stages, options: dict[str, Any]) -> tuple[str, str]:
    """API key and admin password."""
    with stages.stage("database", "migrations"):
        prepare.migrate()
    with stages.stage("access", "API key and admin login") as stage:
        api_key, note = prepare.ensure_api_key(place, wanted=options["api_key"] or settings.API_KEY)
        stage.note = note or stage.note
        return api_key, prepare.ensure_admin(place)


def _prepare_data(place: DemoPlace, stages: Stages, options: dict[str, Any]) -> None:
    with stages.stage("static", "files of the admin and of the API's page"):
        prepare.collect_static()
    with stages.stage("policies", "how fresh copies must be") as stage:
        stage.note = prepare.ensure_policies()
    with stages.stage("data", "importing" if options["data"] else "simulating") as stage:
        stage.note = prepare.ensure_data(
            place,
            file=options["data"],
            customers=options["customers"],
            merchants=options["merchants"],
            days=options["days"],
            now=timezone.now(),
        )


def _prepare_scoring(stages: Stages) -> None:
    with stages.stage("features", "building what is missing or old") as stage:
        stage.note = prepare.ensure_features(now=timezone.now())
    with stages.stage("model", "training unless one is active") as stage:
        stage.note = prepare.ensure_model()
    with stages.stage("warm-up", "most active customers and merchants") as stage, shown() as progress:
        report = run.warm_most_active(limit=run.MOST_ACTIVE_LIMIT, now=timezone.now(), progress=progress)
        stage.note = f"{report.keys_put:,} keys into L2" + (f"; {report.stopped}" if report.stopped else "")


def _wait_until_ready(port: int, children: Children, stop: Stop) -> None:
    client = ServiceClient(base_url(port), timeout_s=_ASK_S)  # a port may take connections long before it answers
    deadline = time.monotonic() + READY_WITHIN_S
    last = "nobody answers"
    while not stop.wait(0.1):
        children.tend()
        try:
            reply = client.get("/healthz/ready")
        except Unreachable as error:
            last = str(error)
        else:
            if reply.status == 200:
                return
            last = reply.body.decode("utf-8", "replace")
        if time.monotonic() > deadline:
            raise ChildFailed(f"the web process is not ready after {READY_WITHIN_S:.0f} s: {last}")


def _first_score(client: ServiceClient, transaction: dict[str, Any]) -> Reply:
    try:
        reply = client.score(transaction, query="?include=features,trace")
    except Unreachable as error:
        raise ChildFailed(f"the first score got no answer: {error}") from error
    if reply.status != 200:
        raise ChildFailed(f"the first score was refused ({reply.status}): {reply.body.decode('utf-8', 'replace')}")
    return reply


def _watch(children: Children, stages: Stages, stop: Stop, *, duration_s: float | None) -> None:
    terminal = stages.stream.isatty()
    ends = time.monotonic() + duration_s if duration_s is not None else None
    earlier, shown_at = collect_figures(_now()), time.monotonic()
    while not stop.wait(TEND_EVERY_S):
        children.tend()
        if ends is not None and time.monotonic() >= ends:
            return
        if terminal and time.monotonic() - shown_at >= STATUS_EVERY_S:
            later, shown_at = collect_figures(_now()), time.monotonic()
            stages.stream.write(f"\r\x1b[K{status_line(earlier, later)}")
            stages.stream.flush()
            earlier = later


def _let_go_of_the_servers() -> None:
    """Threads and connections that the preparation needed, and that would complain when the servers stop."""
    # A statement that was interrupted leaves a connection that the pool would complain of.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    policies.forget()
    wiring.reset()
    connection.close()
    connection.close_pool()  # type: ignore[attr-defined]


def _stop_servers(stages: Stages) -> None:
    started = embedded.started_here()
    if started:
        embedded.Servers(embedded.var_dir()).down(started)
    stages.say(f"stopped, servers too: {', '.join(started)}" if started else "stopped; the servers go on, as before")


def _age_s() -> float:
    """Since this process began."""
    return time.time() - psutil.Process().create_time()


def _now() -> float:
    return datetime.now(UTC).timestamp()
