"""What tests of the spool share: lines that are no decisions, drains that take whatever comes, other processes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from mlserve.settings.base import BASE_DIR
from predictions.spooled.drain import Delivered, Fate, Plan, drain
from predictions.spooled.lines import Line


class Numbered(msgspec.Struct):
    number: int


def drained(*, max_lines: int = 200) -> list[bytes]:
    """Everything that a drain finds, all of it taken."""
    lines: list[bytes] = []

    def take(chunk: Sequence[Line]) -> Delivered:
        lines.extend(line.data for line in chunk)
        return Delivered([Fate.SETTLED] * len(chunk))

    drain(Plan(deliver=take, max_lines=lambda: max_lines))
    return lines


def drain_with(fate_of: Callable[[bytes], Fate], *, max_lines: int = 200) -> list[bytes]:
    """What was offered, in this order."""
    offered: list[bytes] = []

    def deliver(chunk: Sequence[Line]) -> Delivered:
        offered.extend(line.data for line in chunk)
        return Delivered([fate_of(line.data) for line in chunk])

    drain(Plan(deliver=deliver, max_lines=lambda: max_lines))
    return offered


def numbers(lines: Sequence[bytes]) -> list[int]:
    return [msgspec.json.decode(line, type=Numbered).number for line in lines]


HEAD = f"""
import os, sys, pathlib, signal, resource
sys.path.insert(0, {str(BASE_DIR)!r})
from django.conf import settings
settings.configure(VAR_DIR=sys.argv[1])
from predictions import spool
from tests.predictions.spools import Numbered, drain_with, drained, numbers
"""


def python(code: str, *arguments: Path) -> "subprocess.Popen[str]":
    """A process that has the spool in the folder of its first argument."""
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: "subprocess.Popen[str]") -> str:
    """Its next line."""
    assert process.stdout
    return process.stdout.readline().strip()
