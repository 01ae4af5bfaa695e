#!/usr/bin/env python3
"""Compares two slots file by file.

usage: slots.py ONE.squashfs OTHER.squashfs LIST

LIST names what may differ, a path a line with its reason; a path that is listed and does not differ is wrong too, so the list stays
true. Ends with 0 only if exactly the listed files differ. Needs root and unsquashfs.
"""

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    one, other, listed = map(Path, sys.argv[1:4])
    allowed = {line.split()[0] for line in listed.read_text().splitlines() if line and not line.startswith("#")}
    with tempfile.TemporaryDirectory(prefix="samovar-slots.", dir="/var/tmp") as work:
        trees = [tree(slot, Path(work) / side) for side, slot in (("one", one), ("other", other))]
    paths = sorted(trees[0].keys() | trees[1].keys())
    differing = {path: (trees[0].get(path), trees[1].get(path)) for path in paths if trees[0].get(path) != trees[1].get(path)}
    for path, (a, b) in differing.items():
        print(f"{'listed' if path in allowed else 'NOT LISTED'}: {path}\n    {one}: {a}\n    {other}: {b}")
    for path in sorted(allowed - differing.keys()):
        print(f"LISTED IN {listed} BUT THE SAME: {path}")
    print(f"{len(paths)} files and directories, {len(differing)} differ, {len(allowed)} are listed as such")
    return int(differing.keys() != allowed)


def tree(slot: Path, place: Path) -> dict[str, str]:
    """Path of everything in a slot → what can be seen of it: kind, mode, owner, size, links, content, extended attributes."""
    subprocess.run(["unsquashfs", "-no-progress", "-quiet", "-dest", place, slot], check=True, stdout=subprocess.DEVNULL)
    seen = {}
    for directory, names, files in os.walk(place):
        for name in [".", *names, *files]:
            path = Path(directory, name)
            if name == "." and path != place:
                continue
            seen["/" + str(path.relative_to(place))] = look(path)
    return seen


def look(path: Path) -> str:
    status = path.lstat()
    said = f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
    attributes = {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in os.listxattr(path, follow_symlinks=False)}
    if attributes:
        said += f" {attributes}"
    if stat.S_ISLNK(status.st_mode):
        return f"{said} -> {os.readlink(path)}"
    if stat.S_ISREG(status.st_mode):
        return f"{said} {status.st_nlink} link(s) {status.st_size} bytes {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return f"{said} device {status.st_rdev}"
    return said


if __name__ == "__main__":
    sys.exit(main())
