"""What the programs of the box share: places, durable files, and what the console tells."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ESP = Path("/efi/samovar")
RUN = Path("/run/samovar")
STATE = Path("/var/lib/samovar-site")
ETC = STATE / "etc"
# What is wrong, in plain words, for the console; absent if nothing is.
PROBLEM = RUN / "problem"
DATA = Path("/dev/samovar/data")
GRUBENV = "/efi/EFI/samovar/grubenv"
# The key of the data partition, copied from the stick that unlocks it; in memory only.
DATA_KEY = RUN / "data.key"
# Exists on a box whose site file says that it joins a cluster, so that it makes no ledger of its own.
JOINS = RUN / "joins"
# Of a box that is to join a cluster and has not yet; removed when it has.
JOIN_TOKEN = STATE / "join.token"


def say(text: str) -> None:
    """One line to the journal."""
    print(text, flush=True)


def tell(problem: str) -> None:
    """Shows a problem on the console and, if it is a new one, in the journal."""
    if not PROBLEM.exists() or PROBLEM.read_text() != problem:
        print(f"<3>{problem}", file=sys.stderr, flush=True)
        put(PROBLEM, problem)


def solved() -> None:
    """Takes the problem off the console."""
    PROBLEM.unlink(missing_ok=True)


def put(path: Path, text: str | bytes, mode: int = 0o644) -> None:
    """Replaces a file, durably and as a whole."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode() if isinstance(text, str) else text)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes the names in a directory durable."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def output(*command: str) -> str:
    """Standard output of a command, "" if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def daemon() -> dict:
    """The daemon's configuration as it stands in its file; OSError, tomllib.TOMLDecodeError."""
    return tomllib.loads((ETC / "samovar.toml").read_text())


def shown(address: str) -> list[str]:
    """Options of `samovar init` and `join`: what the new certificate names. `address` is the site's, with its prefix length, or ""."""
    host = address.split("/")[0]
    options = [f"--listen={f'[{host}]' if ':' in host else host}:8443"] if host else []
    try:
        names = daemon().get("tls", {}).get("names", [])
    except (OSError, tomllib.TOMLDecodeError) as error:
        say(f"<4>samovar.toml: {error}; the certificate names the machine and its address alone")
        names = []
    return options + ([f"--tls-names={','.join(names)}"] if names else [])


def image() -> dict[str, str]:
    """Version, build and kind of key of the running slot."""
    pairs = (line.split("=", 1) for line in Path("/usr/lib/samovar/image").read_text().splitlines() if "=" in line)
    return dict(pairs)


def slot() -> str:
    """Letter of the slot that was booted."""
    words = Path("/proc/cmdline").read_text().split()
    return next((word.partition("=")[2] for word in words if word.startswith("rauc.slot=")), "?")


def spare_try() -> None:
    """Takes this start off the boot counter: a new box waits for somebody, which is no fault of its version. The power may be cut
    as often as one likes meanwhile."""
    subprocess.run(["grub-editenv", GRUBENV, "set", f"{slot()}_TRY=0"], check=False)
