"""`python -m features.checker.child DIRECTORY`: loads the application once and forks a process for each command.

Reads one JSON object a line, `{"role": ..., ...}`, and answers `{"forked": pid}`; `{"exited": pid, "code": n}` follows
when that process has ended. Not for people.
"""

import gc
import json
import os
import select
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import django

from mlserve.servers.valkey_node import die_with_parent

_LOOK_S = 0.02


def main(directory: Path) -> None:
    django.setup()
    # After the settings: these import models.
    from features.checker import ablations
    from features.checker.roles import ROLES
    from features.checker.run_file import RunFile

    run = RunFile.read(directory)
    ablations.remove(run.ablation)
    gc.collect()
    gc.freeze()  # what the children share stays shared
    _say({"ready": True})
    pending = b""
    while True:
        if select.select([0], [], [], _LOOK_S)[0]:
            data = os.read(0, 65_536)
            if not data:
                return  # nobody is there to give commands any more
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                command = json.loads(line)
                role = ROLES[command.pop("role")]
                pid = os.fork()
                if pid == 0:
                    _play(role, run, command, directory / "children.log")
                _say({"forked": pid})
        _tell_of_the_dead()


def _play(role: Any, run: Any, arguments: dict[str, Any], log: Path) -> None:
    """In the child; does not return."""
    code = 1
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        null, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        role(run, **arguments)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _tell_of_the_dead() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _say({"exited": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(message: dict[str, Any]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
