"""What a new box is given on: the stick labelled SAMOVAR, and secrets that are taken off it."""

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

from box import RUN, sync
from sitefile import SiteError

STICK = Path("/dev/disk/by-label/SAMOVAR")


def wipe(path: Path) -> None:
    """Overwrites a small secret, durably, and removes it. What a flash medium keeps of its old blocks nobody can say."""
    try:
        with path.open("r+b") as file:
            file.write(bytes(path.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
    except FileNotFoundError:
        return
    path.unlink()
    sync(path.parent)


@contextmanager
def stick(*, writable: bool = False):
    """Mounts the stick labelled SAMOVAR; yields its directory `samovar`, or nothing if there is no stick."""
    place = RUN / "stick"
    if not STICK.exists():
        yield None
        return
    place.mkdir(exist_ok=True)
    options = ("rw" if writable else "ro") + ",nodev,nosuid,noexec"
    mounted = subprocess.run(["mount", "-t", "vfat", "-o", options, STICK, place], capture_output=True, text=True, check=False)
    if mounted.returncode:
        raise SiteError(f"the stick labelled SAMOVAR cannot be read: {mounted.stderr.strip()}; format it with FAT")
    try:
        yield place / "samovar"
    finally:
        subprocess.run(["umount", place], check=True)
