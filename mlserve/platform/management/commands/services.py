"""The embedded servers by hand: `manage.py services up|down|status`."""

import json
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from django.core.management.base import BaseCommand, CommandError, CommandParser

from mlserve import embedded
from mlserve.servers.process import EmbeddedServerError


class Command(BaseCommand):
    help = (
        "Starts, stops or shows the embedded PostgreSQL and Valkeys of this checkout. Servers that DATABASE_URL, "
        "REDIS_CACHE_URL and REDIS_BROKER_URL name are not touched."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", choices=["up", "down", "status"])
        parser.add_argument("--json", action="store_true", help="print one JSON object; `up` includes the passwords")
        parser.add_argument("--delete-data", action="store_true", help="with `down`: delete all data as well")

    def handle(self, *args: Any, **options: Any) -> None:
        action, as_json, delete = options["action"], options["json"], options["delete_data"]
        if delete and action != "down":
            raise CommandError("--delete-data goes with `down` only", returncode=2)
        for variable, name in embedded.configured().items():
            self.stderr.write(f"{variable} is set: commands use that server and not the embedded {name}")
        try:
            if action == "up":
                self._up(as_json=as_json)
            elif action == "down":
                self._down(as_json=as_json, delete=delete)
            else:
                self._status(as_json=as_json)
        except EmbeddedServerError as error:
            raise CommandError(str(error)) from error

    def _up(self, *, as_json: bool) -> None:
        root = embedded.var_dir()
        urls = embedded.up(root)
        if as_json:
            self.stdout.write(json.dumps(asdict(urls)))
            return
        for name in embedded.NAMES:
            url = urls.get(name)
            self.stdout.write(f"{name:10} {_without_password(url) if url else 'down'}")
        self.stdout.write(f"URLs with passwords: {root / 'services.json'}")

    def _down(self, *, as_json: bool, delete: bool) -> None:
        servers = embedded.Servers(embedded.var_dir())
        if delete:
            servers.destroy()
        else:
            servers.down()
        message = "down; the data are deleted" if delete else "down; the data stay"
        self.stdout.write(json.dumps({"running": [], "data_deleted": delete}) if as_json else message)

    def _status(self, *, as_json: bool) -> None:
        found = embedded.status(embedded.var_dir())
        if as_json:
            self.stdout.write(json.dumps({"servers": [asdict(server) for server in found]}))
        elif not found:
            self.stdout.write("never started")
        for server in found if not as_json else []:
            version = server.version or "-"
            pid = server.pids[0] if server.pids else "-"
            self.stdout.write(
                f"{server.name:10} {server.health:9} {version:8} port {server.port}  pid {pid}  {server.log}"
            )


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{parts.hostname}:{parts.port}{parts.path}"
