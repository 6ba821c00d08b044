"""`manage.py doctor`: what works, what does not, and what to do about it."""

import json
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from mlserve.platform.diagnosis import Finding, Level, examine


class Command(BaseCommand):
    help = "Examines versions, servers, migrations, Celery, model and policies. Exit code 1 if anything fails."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object")

    def handle(self, **options: Any) -> None:
        findings = examine()
        failed = any(finding.level is Level.FAIL for finding in findings)
        if options["json"]:
            document = {"healthy": not failed, "findings": [asdict(finding) for finding in findings]}
            self.stdout.write(json.dumps(document))
        else:
            for finding in findings:
                self._print(finding)
        if failed:
            sys.exit(1)

    def _print(self, finding: Finding) -> None:
        style = {Level.OK: self.style.SUCCESS, Level.WARN: self.style.WARNING, Level.FAIL: self.style.ERROR}
        self.stdout.write(f"{style[finding.level](f'{finding.level:4}')}  {finding.subject:17}  {finding.detail}")
        if finding.fix:
            self.stdout.write(f"{'':23}  fix: {finding.fix}")
