"""Updates of the box: its state, its steps, what a bundle must be, and GRUB's environment. Used by `updater` (orders),
`installer` (writes a bundle) and `confirm` (judges the version that runs).

Files in /var/lib/samovar-update, written by root alone: `state` (JSON; what `samovar update status` shows), `events` (one step a
line, the spool from which the daemon makes entries of the ledger), `expectation` (what was durable before the update),
`order` (what the installer is to do). Root may use the blocks that ext4 keeps for it, so a full disk does not stop them.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

from box import GRUBENV, image, output, put, slot

DIRECTORY = Path("/var/lib/samovar-update")
STATE, EVENTS = DIRECTORY / "state", DIRECTORY / "events"
EXPECTATION, ORDER, DOWNLOAD = DIRECTORY / "expectation", DIRECTORY / "order", DIRECTORY / "bundle"
SLOTS = ("A", "B")
# Free space that an update leaves to the ledger, which refuses writes below 128 MiB by default.
ROOM_BYTES = 160 << 20
# A bundle is as large as a slot at most.
BUNDLE_BYTES_MAX = 512 << 20


class Refused(Exception):
    """An order that is not taken; the text says why, and what to do."""


def other(letter: str) -> str:
    return "B" if letter == "A" else "A"


def in_rescue() -> bool:
    return "samovar.rescue=1" in Path("/proc/cmdline").read_text().split()


def about(words: dict[str, str]) -> dict:
    """What is kept of a version: from /usr/lib/samovar/image."""
    return {"version": words["version"], "data_format": int(words.get("data_format", "1"))}


def load() -> dict:
    """The state. Of a box whose state cannot be read, what runs is taken for good: it got this far."""
    try:
        return json.loads(STATE.read_text())
    except (OSError, ValueError):
        booted = about(image()) | {"standing": "confirmed"}
        return {"state": "idle", "message": "", "preferred": slot(), "data_format": booted["data_format"], "slots": {slot(): booted}}


def save(state: dict) -> None:
    letter = slot()
    own, spare = (state["slots"].get(name, {"version": "", "standing": "empty"}) for name in (letter, other(letter)))
    shown = {"slot": letter, "version": own["version"], "standing": own["standing"],
             "spare": {"slot": other(letter), "version": spare["version"], "standing": spare["standing"]}}  # fmt: skip
    put(STATE, json.dumps(state | shown, indent=1) + "\n")


def event(step: str, version: str, letter: str, by: str = "", why: str = "") -> None:
    """Adds a step to the spool, durably."""
    text = EVENTS.read_text() if EVENTS.exists() else ""
    last = 0
    for line in text.splitlines():
        try:
            last = max(last, json.loads(line)["sequence"])
        except (ValueError, KeyError, TypeError):
            continue  # Cut off with the power.
    row = {"sequence": last + 1, "time_s": int(time.time()), "step": step, "version": version, "slot": letter, "by": by, "why": why[:2000]}
    with EVENTS.open("a") as file:
        file.write(("" if text.endswith("\n") or not text else "\n") + json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    print(f"{step}: version {version}, slot {letter}" + (f": {why}" if why else ""), flush=True)


def bootenv() -> dict[str, str]:
    """GRUB's environment; empty if it cannot be read."""
    lines = output("grub-editenv", GRUBENV, "list").splitlines()
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    wanted = {"ORDER", *(f"{name}_{what}" for name in SLOTS for what in ("OK", "TRY"))}
    return found if wanted <= found.keys() else {}


def mend_bootenv(state: dict) -> bool:
    """Makes GRUB's environment anew from the state, if it cannot be read; says whether it did."""
    if bootenv():
        return False
    first = state.get("preferred") or slot()
    good = {name: state["slots"].get(name, {}).get("standing") in ("confirmed", "installed", "trial") for name in SLOTS}
    confirmed = [name for name in (first, other(first)) if state["slots"].get(name, {}).get("standing") == "confirmed"]
    pairs = [f"ORDER={first} {other(first)}", f"CONFIRMED={(confirmed or [first])[0]}"]
    pairs += [f"{name}_OK={int(good[name])}" for name in SLOTS] + [f"{name}_TRY=0" for name in SLOTS]
    subprocess.run(["grub-editenv", GRUBENV, "create"], check=True)
    subprocess.run(["grub-editenv", GRUBENV, "set", *pairs], check=True)
    event("rebuilt", image()["version"], slot(), why="GRUB's environment could not be read; it was made anew")
    return True


def room() -> None:
    """Refuses an update for which the data disk has no room."""
    disk = os.statvfs("/var")
    free = disk.f_bavail * disk.f_frsize
    if free < ROOM_BYTES:
        raise Refused(f"the data disk has {free >> 20} MiB free and an update asks for {ROOM_BYTES >> 20}: make room (docs/operate/store.md), "
                      "or make the disk larger, then try again")  # fmt: skip


def inspect(path: str, state: dict) -> dict:
    """What a bundle says of itself, if it is signed by a key of the site and may follow what runs."""
    result = subprocess.run(["rauc", "info", "--output-format=json-2", path], capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr.strip().splitlines() or ["rauc says nothing"])[-1]
        raise Refused(f"{path} is no bundle that this box trusts: {said}. It must be signed by a key of this site (image/build --keys)")
    bundle = json.loads(result.stdout)
    name, wanted = bundle["update"]["compatible"], compatible()
    if name != wanted:
        raise Refused(f"the bundle is for {name}, this box is {wanted}: take the bundle that was built for it")
    meta = bundle.get("meta", {}).get("samovar", {})
    found = {"version": bundle["update"]["version"], "data_format": int(meta.get("data-format", "1"))}
    if not (in_rescue() and found["version"] == image()["version"]):
        follow(image()["version"], found["version"], meta.get("minimum", "0.0.0"))
    reads(found, state | {"data_format": finalized(state)})
    return found


def compatible() -> str:
    return re.search(r"^compatible=(.*)$", Path("/etc/rauc/system.conf").read_text(), re.MULTILINE)[1]


def numbers(version: str) -> tuple[int, int, int]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if not found:
        raise Refused(f"{version!r} is no version: expected MAJOR.MINOR.PATCH")
    return tuple(map(int, found.groups()))


def follow(now: str, then: str, minimum: str) -> None:
    """Refuses a version that may not come after the one that runs."""
    here, there = numbers(now), numbers(then)
    if there == here and then == now:
        raise Refused(f"version {then} runs already: there is nothing to do")
    if numbers(minimum) > here:
        raise Refused(f"version {then} asks for version {minimum} or newer, here runs {now}: install {minimum} first")
    if there[:2] < here[:2]:
        raise Refused(f"version {then} is older than {now}: samovar update rollback goes back to the other slot")
    if there[0] > here[0] + 1 or (there[0] == here[0] + 1 and there[1] > 0) or (there[0] == here[0] and there[1] > here[1] + 1):
        raise Refused(f"from {now} to {then} leaves a minor version out: install {here[0]}.{here[1] + 1} first")


def finalized(state: dict) -> int:
    """What a version must read: the format of commands that the ledger is finalized for; what was known last, when it does not say."""
    said = output("samovar", "finalize", "--preview", "--output", "json")
    return max(state["data_format"], json.loads(said)["in_force"]) if said else state["data_format"]


def reads(found: dict, state: dict) -> None:
    """Refuses a version that cannot read what was written here."""
    if found["data_format"] < state["data_format"]:
        raise Refused(f"the ledger here is of data format {state['data_format']}, version {found['version']} reads {found['data_format']} at most: "
                      "install a newer version")  # fmt: skip
