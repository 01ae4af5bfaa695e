"""Power cuts that take the disk's cache: tests/image/cuts.

usage, in a network namespace of its own:
  cuts.py record DIRECTORY DISK.raw GOOD.raucb
  cuts.py look DIRECTORY POINTS
  cuts.py boot DIRECTORY POINTS BOOTS

One box is recorded from its first boot over an update to its confirmation, while a client writes; then the disk is rebuilt as cuts
at many points could have left it (blocklog.py), read without starting it (offline.py), and some of them are booted.
"""

import hashlib
import json
import os
import random
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

from blocklog import LOSSES, BlockLog, Entry, Rebuilder
from checks import point, result, step, until
from lane import Lane
from machine import GUEST, Machine, network
from offline import Clear, Offline, Wrong, read_table
from updating import Updates, version

SEED = 20261128
PAUSE_S = 0.3


@dataclass
class Told:
    """What somebody was told, and how many entries the disk's log had by then."""

    writes: list[int] = field(default_factory=list)
    provisioned: int = 0
    installed: int = 0
    confirmed: int = 0


class Client(threading.Thread):
    """Writes one key after the other; remembers when each was acknowledged."""

    def __init__(self, token: str, told: Told, disk: BlockLog):
        super().__init__(daemon=True)
        self.token, self.told, self.disk = token, told, disk
        self.ends = threading.Event()

    def run(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        while not self.ends.is_set():
            number = len(self.told.writes)
            request = urllib.request.Request(f"https://{GUEST}:8443/v1/keys/power%2F{number:06}", method="PUT", data=f"value {number}".encode(),
                                             headers={"Authorization": f"Bearer {self.token}", "Content-Type": "text/plain"})  # fmt: skip
            try:
                with urllib.request.urlopen(request, timeout=20, context=context):
                    self.told.writes.append(self.disk.position())
            except OSError:
                pass  # It starts again; a write in doubt is written once more.
            time.sleep(PAUSE_S)


class Cuts:
    """A recording in a directory, and what is done with it."""

    def __init__(self, work: Path):
        self.work, self.told = work, Told()
        self.key, self.stick, self.base, self.log = (work / name for name in ("data.key", "stick.img", "base.raw", "writes"))
        self.entries: list[Entry] = []

    def load(self) -> None:
        said = json.loads((self.work / "recording.json").read_text())
        self.told, self.entries = Told(**said["told"]), [Entry(*entry) for entry in said["entries"]]
        self.slots = {letter: self.work / f"{letter}.squashfs" for letter in "AB"}

    def record(self, image: Path, good: Path) -> None:
        """From the first boot to the confirmation of an update."""
        step("recorded: first boot, confirmation, install, restart, confirmation of the new version")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", self.work / "ops"], check=True)
        lane = Lane(image, self.work)
        updates = Updates(lane, good)
        try:
            self.through(lane, updates, updates.box)
        finally:
            updates.box.cut()
        for letter, file in (("A", image), ("B", good)):
            subprocess.run(["cp", file.with_suffix(".squashfs"), self.work / f"{letter}.squashfs"], check=True)
        flushes = sum(not entry.length for entry in self.entries)
        text = json.dumps({"told": asdict(self.told), "entries": [astuple(entry) for entry in self.entries]})
        (self.work / "recording.json").write_text(text)
        print(f"{len(self.entries) - flushes} writes of {sum(e.length for e in self.entries if e.at >= 0) >> 20} MiB and {flushes} flushes recorded; "
              f"{len(self.told.writes)} writes to the ledger acknowledged; told: provisioned at {self.told.provisioned}, installed at "
              f"{self.told.installed}, confirmed at {self.told.confirmed}")  # fmt: skip

    def through(self, lane: Lane, updates: Updates, box: Machine) -> None:
        box.bios, box.tpm = True, False
        subprocess.run(["image/site", "stick", lane.site("box-update", encryption='"stick"'), self.stick, "--data-key"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mcopy", "-n", "-i", self.stick, "::/samovar/data.key", self.key], check=True, env=os.environ | {"MTOOLS_SKIP_CHECK": "1"})
        box.sticks = [self.stick]
        subprocess.run(["cp", "--sparse=always", box.disk, self.base], check=True)
        disk = BlockLog(box.disk, self.work / "nbd", self.log)
        disk.start()
        box.nbd = self.work / "nbd"
        updates.boot("A")
        self.told.provisioned = disk.position()
        client = Client(box.ssh("cat /var/lib/samovar/admin.token"), self.told, disk)
        client.start()
        updates.confirmed("A", version(lane.image))
        box.send(updates.good, "/var/tmp/good.raucb")
        box.ssh("samovar update install /var/tmp/good.raucb", patience_s=900)
        until(lambda: updates.state()["state"] == "installed")
        self.told.installed = disk.position()
        box.ssh("samovar update restart", check=False)
        updates.boot("B")
        updates.confirmed("B", version(updates.good))
        self.told.confirmed = disk.position()
        # What an operator does next, and a while of nothing but writes.
        box.ssh("rm /var/tmp/good.raucb")
        time.sleep(20)
        client.ends.set()
        client.join()
        box.cut()
        self.entries = list(disk.entries)

    def chosen(self, points: int) -> list[int]:
        """Points where something was written that a box starts from, and others over the whole."""
        chance = random.Random(SEED)
        with self.base.open("rb") as file:
            parts = read_table(file, 512) or {}
        end = self.base.stat().st_size
        # The data partition begins where slot B ends; LUKS2 keeps its header in the first 16 MiB.
        data = parts[4][1]
        areas = {"partition table": (0, 1 << 20), "its copy": (end - (1 << 20), end), "ESP": parts[2], "header of the data partition": (data, data + (17 << 20)),
                 "slot B": parts[4]}  # fmt: skip
        found: set[int] = set()
        for name, (first, last) in areas.items():
            # Just after a write, so that it is there and nothing has flushed it.
            hits = [n + 1 for n, e in enumerate(self.entries) if e.length and first <= e.offset < last]
            picked = chance.sample(hits, min(len(hits), max(4, points // 8)))
            print(f"{len(hits)} writes to {name}, cut after {len(picked)} of them")
            found |= set(picked)
        everywhere = [n + 1 for n, e in enumerate(self.entries) if e.length]
        while len(found) < points:
            found.add(chance.choice(everywhere))
        return sorted(found)

    def rebuilder(self, name: str) -> Rebuilder:
        return Rebuilder(self.base, self.log, self.entries, self.work / name)

    def look(self, points: list[int]) -> None:
        step(f"{len(points)} cuts, read without starting the disk")
        (self.work / "look").mkdir(exist_ok=True)
        self.clear = Clear(self.work / "look")
        rebuilder = self.rebuilder("looked-at.raw")
        content = {letter: hashlib.sha256(file.read_bytes()).hexdigest() for letter, file in self.slots.items()}
        notes: Counter[str] = Counter()
        dropped = wrong = 0
        for number, at in enumerate(points):
            place = self.work / "cut.raw"
            if number % 20 == 19:
                step(f"{number} of {len(points)}")
            loss = LOSSES[number % len(LOSSES)]
            waiting = rebuilder.cut(at, loss, SEED + number, place)
            dropped += waiting > 0
            try:
                notes.update(self.read(at, place, content))
            except Wrong as why:
                wrong += 1
                point(f"cut {number} after entry {at}, {loss} of {waiting} writes kept", False, why)
            if number == len(points) // 2:
                place.rename(self.work / "control.raw")
        point(f"{len(points)} cuts, {dropped} with writes that no flush covered: partition table, ESP, slots, file system, ledger and every "
              "acknowledged write hold", not wrong, f"{wrong} do not")  # fmt: skip
        try:
            self.read(points[-1], self.work / "control.raw", content)
            point("a disk that lost more than a cut may take is found out", False, f"one of entry {points[len(points) // 2]} passed for one of {points[-1]}")
        except Wrong as why:
            point(f"a disk that lost more than a cut may take is found out ({why})", True)
        for note, count in notes.most_common():
            print(f"  {count} × {note}")

    def boot(self, points: list[int], boots: int) -> None:
        booted = range(0, len(points), max(1, len(points) // boots))[:boots]
        step(f"{len(booted)} of {len(points)} cuts booted")
        self.lane = Lane(self.base, self.work)
        # The latest first: they have the most to lose.
        for number in reversed(booted):
            disk = self.work / "boot.raw"
            self.rebuilder("booted.raw").cut(points[number], LOSSES[number % len(LOSSES)], SEED + number, disk)
            self.start(disk, points[number])

    def read(self, at: int, disk: Path, content: dict[str, str]) -> list[str]:
        """What a cut left, read without starting it; what is worth counting."""
        offline = Offline(disk, self.work / "look")
        files = offline.esp()
        letter = offline.choice(files)
        for slot, file in self.slots.items():
            tried = offline.env["A_OK" if slot == "A" else "B_OK"] == "1"
            if tried and (slot == letter or at >= self.told.installed):
                size = file.stat().st_size
                if hashlib.sha256(offline.slot(slot, size)).hexdigest() != content[slot]:
                    raise Wrong(f"slot {slot} may be started and is not what was installed")
        if at >= self.told.confirmed and (letter != "B" or offline.env["CONFIRMED"] != "B"):
            raise Wrong(f"the confirmation is gone: GRUB would start {letter}, {offline.env}")
        found = [f"slot {letter} next"]
        provisioned = (files / "samovar/provisioned").exists()
        if at >= self.told.provisioned and not provisioned:
            raise Wrong("the box served, and takes itself for a new one")
        if provisioned:
            if 5 not in offline.partitions:
                raise Wrong("marked as provisioned, and no data partition")
            var = offline.var(self.key, self.clear)
            if not (var / "lib/samovar-site/etc/site.toml").exists():
                raise Wrong("marked as provisioned, and no site file in /var")
            written = sum(position <= at for position in self.told.writes)
            if (var / "lib/samovar/log.vkey").exists() and not (var / "lib/samovar/init.partial").exists():
                there = offline.ledger(var / "lib/samovar", written)
                found.append("ledger opened" + (", with writes" if there else ""))
            elif at >= self.told.provisioned:
                raise Wrong("the box served, and has no ledger")
        else:
            found.append("a new box still")
        return found + offline.notes

    def start(self, disk: Path, at: int) -> None:
        """Boots what a cut left: it serves, and has every write that was acknowledged by then."""
        written = sum(position <= at for position in self.told.writes)
        what = f"boot after a cut at entry {at}, {written} writes acknowledged"
        box = Machine(self.work, f"boot-{at}", disk, bios=True, tpm=False)
        box.sticks = [self.stick]
        began = time.monotonic()
        try:
            box.start()
            slot = box.console("samovar: slot ., try .")[14:]
            served = until(lambda: self.lane.ready_now() == 200, 600)
            ready_s = time.monotonic() - began
            # One login, since each takes seconds.
            said = box.ssh("systemctl --failed --plain --no-legend; echo --; samovar keys power/ --data /var/lib/samovar --output json", check=False)
            failed, _, keys = said.partition("--")
            there = {int(number) for number in re.findall(r"power/(\d{6})", keys)}
            lost = [number for number in range(written) if number not in there]
            point(f"{what}: serves from slot {slot} after {ready_s:.0f} s with all of them", served and not lost and not failed,
                  f"served {served}, lost {lost[:3]}, failed units: {failed}")  # fmt: skip
        except (RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
            point(what, False, error)
        finally:
            box.cut()


def main() -> int:
    what, work = sys.argv[1], Path(sys.argv[2]).resolve()
    network()
    cuts = Cuts(work)
    try:
        if what == "record":
            image, good = Path(sys.argv[3]).resolve(), Path(sys.argv[4]).resolve()
            for file in (image, good):
                print(f"{file.name}: SHA-256 {hashlib.file_digest(file.open('rb'), 'sha256').hexdigest()}")
            cuts.record(image, good)
        else:
            cuts.load()
            points = cuts.chosen(int(sys.argv[3]))
            if what == "look":
                cuts.look(points)
            else:
                cuts.boot(points, int(sys.argv[4]))
    except (RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
        point("the lane ran to its end", False, error)
    return result("tests/image/cuts")


if __name__ == "__main__":
    sys.exit(main())
