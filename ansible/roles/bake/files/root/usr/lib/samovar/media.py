"""What a new box is given on: the stick labelled SAMOVAR, secrets that are taken off it, and whether a stick is the box's own."""

import hashlib
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

from box import DATA_KEY, ESP, RUN, sync
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


def digest(site: bytes) -> str:
    """What the mark on the ESP keeps of the site file that the box was made from, to know its own stick again."""
    return hashlib.sha256(site).hexdigest()


def strange() -> bool:
    """Whether a stick with a site file is in that is not the one this box was made from, nor the one that unlocks it."""
    with stick() as place:
        if not place or not (place / "site.toml").exists():
            return False
        key = place / "data.key"
        if DATA_KEY.exists() and key.exists() and key.read_bytes() == DATA_KEY.read_bytes():
            return False
        mark = ESP / "provisioned"
        return not mark.exists() or digest((place / "site.toml").read_bytes()) not in mark.read_text()
