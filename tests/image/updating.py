"""Points about updates of tests/image/run: a good one, a crashing one, a full disk, a damaged boot environment, boots without a
network, and rescue.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from checks import point, step, tool, until
from machine import Machine

GRUBENV = "/efi/EFI/samovar/grubenv"
# An update that is refused for want of room finds this much.
FREE_MIB = 100


@dataclass(frozen=True)
class Bad:
    """How a box leaves a bad bundle."""

    # Starts of the bad slot.
    tries: int
    # What the box says, as a pattern.
    why: str
    # Steps on the ledger between `installed` and `fell-back`.
    steps: tuple[str, ...]


# By the name of the patch beside this file that the bundle is built with.
BAD = {
    "crash": Bad(1, "the daemon ended by itself", ("trial", "given-up")),
    "hang": Bad(1, "(the daemon ended by itself|no progress within)", ("trial", "given-up")),
    # Nothing of it ever ran, so there is nobody to say more.
    "panic": Bad(3, "it did not come up in three tries", ()),
}


class Updates:
    """One box through its updates."""

    def __init__(self, lane, good: Path | None = None, crashing: Path | None = None):
        self.lane, self.good, self.crashing = lane, good, crashing
        self.box: Machine = lane.machine("box-update")

    def run(self) -> None:
        box, lane = self.box, self.lane
        step("first boot")
        site = lane.site("box-update")


        written = tool("image/site", "write", site, box.disk, "--allow-dev")
        point("image/site writes the site file", written.returncode == 0, written.stderr)
        self.boot("A")
        self.identity = lane.identity(box)
        self.receipt = lane.write_and_verify(box)
        state = self.state()
        point("slot A is confirmed and slot B is empty", (state["slot"], state["standing"], state["spare"]["standing"]) == ("A", "confirmed", "empty"), state)
        self.full_disk()
        self.zeroed()
        self.update()
        self.wrong_head()
        self.garbled()
        self.crash()
        self.without_network()
        self.rescue()

    def run_bad(self, bundles: list[Path]) -> None:
        """Each bundle is installed, started, and left again by the box itself."""
        step("first boot")
        written = tool("image/site", "write", self.lane.site("box-update"), self.box.disk, "--allow-dev")
        point("image/site writes the site file", written.returncode == 0, written.stderr)
        self.boot("A")
        self.identity = self.lane.identity(self.box)
        self.receipt = self.lane.write_and_verify(self.box)
        for bundle in bundles:
            kind = bundle.parent.name
            self.bad(bundle, f"an update that is bad: {kind}", "A", BAD[kind])

    def boot(self, slot: str) -> None:
        """Starts the machine unless it runs; waits until it serves from the slot."""
        if self.box.qemu is None:
            self.box.start()
        self.box.console(f"samovar: slot {slot}, try 1")
        self.box.reachable()
        self.lane.ready(self.box)

    def restart(self, slot: str) -> None:
        self.box.restart()
        self.boot(slot)

    def state(self) -> dict:
        return json.loads(self.box.ssh("samovar update status --output json"))

    def env(self) -> dict[str, str]:
        lines = self.box.ssh(f"grub-editenv {GRUBENV} list").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def kept(self) -> None:
        """Identity, a value and its receipt are what they were."""
        after = self.lane.identity(self.box)
        point("identity and ledger are kept, and the TPM opened the data", after == self.identity, after)
        value = self.box.ssh("samovar get greeting --data /var/lib/samovar", check=False)
        point("the value is there and its receipt holds", value == "hello" and self.lane.verify(self.receipt), value)

    def confirmed(self, slot: str, version: str) -> None:
        held = until(lambda: (lambda s: (s["state"], s["slot"], s["version"], s["standing"]) == ("idle", slot, version, "confirmed"))(self.state()))
        point(f"version {version} in slot {slot} is confirmed", held, self.state())
        env = self.env()
        point("and its boot counter reset", env.get("CONFIRMED") == slot and env.get(f"{slot}_TRY") == "0" and env.get(f"{slot}_OK") == "1", env)

    def on_ledger(self, *steps: str) -> None:
        """The newest steps are these, and every step is an entry."""
        events = self.state()["events"]
        point(f"steps are {', '.join(steps)}", [event["step"] for event in events][-len(steps):] == list(steps), events)
        entries = "journalctl -o cat -u samovar | grep -c 'a step of an update is on the ledger'; true"
        held = until(lambda: int(self.box.ssh(entries)) == events[-1]["sequence"], 60)
        point("each of them became one entry of the ledger", held, self.box.ssh(entries))

    def full_disk(self) -> None:
        step("a full data disk")
        self.box.send(self.good, "/var/tmp/good.raucb")
        free = int(self.box.ssh("stat -f -c '%a * %S' /var | bc 2>/dev/null || df --output=avail -B1 /var | tail -1"))
        self.box.ssh(f"fallocate -l {free - FREE_MIB * 2**20} /var/tmp/filler")
        refused = self.lane.client("update", "install", "/var/tmp/good.raucb")
        point("the install is refused, with what to do", refused.returncode == 1 and "make room" in refused.stderr, refused.stderr or refused.stdout)
        point("and slot B is not touched", self.state()["spare"]["standing"] == "empty" and self.env()["B_OK"] == "0", self.env())
        self.box.ssh("rm /var/tmp/filler")

    def zeroed(self) -> None:
        step("GRUB's environment zeroed")
        self.box.restart(f"dd if=/dev/zero of={GRUBENV} bs=1024 count=1 conv=notrunc,fsync status=none && systemctl reboot")
        self.box.console("samovar: slot A")
        self.box.reachable()
        self.lane.ready(self.box)
        held = until(lambda: self.env().get("CONFIRMED") == "A")
        point("it boots, and the environment is made anew", held and self.env().get("ORDER") == "A B", self.env())
        self.on_ledger("rebuilt")

    def update(self) -> None:
        step("a good update, over the API")
        began = time.monotonic()
        done = self.lane.client("update", "install", "/var/tmp/good.raucb")
        print(f"install: {time.monotonic() - began:.0f} s")
        point("the bundle is installed", done.returncode == 0 and "restart" in done.stdout, done.stderr or done.stdout)
        if done.returncode:
            raise RuntimeError(done.stderr)
        began = time.monotonic()
        again = self.lane.client("update", "restart")
        point("the API restarts the box", again.returncode == 0, again.stderr)
        self.boot("B")
        self.confirmed("B", version(self.good))
        print(f"restart to confirmed: {time.monotonic() - began:.0f} s")
        self.kept()
        self.on_ledger("installed", "trial", "confirmed")

    def wrong_head(self) -> None:
        step("a wrong head")
        good = json.loads(self.box.ssh("samovar confirm --json"))
        point("samovar confirm says good", good["verdict"] == "good", good)
        self.box.ssh("sed 's/\"root\": \"..../\"root\": \"AAAA/' /var/lib/samovar-update/expectation > /run/wrong")
        said = self.box.ssh("samovar confirm --json --expect /run/wrong; echo code $?", check=False)
        point("with another root it says bad", "code 1" in said and "another history" in said, said)
        ready = self.lane.ready_now()
        point("although the ledger is ready", ready == 200, ready)

    def garbled(self) -> None:
        step("GRUB's environment garbled: it starts slot A, which was confirmed before")
        self.box.restart(f"dd if=/dev/urandom of={GRUBENV} bs=1024 count=1 conv=notrunc,fsync status=none && systemctl reboot")
        self.box.console("samovar: slot A")
        self.box.reachable()
        self.lane.ready(self.box)
        held = until(lambda: self.env().get("ORDER") == "B A")
        point("the environment is made anew, with slot B first", held, self.env())
        point("and the box says so", "environment was damaged" in self.state()["message"], self.state())
        self.restart("B")
        self.kept()
        self.confirmed("B", version(self.good))

    def crash(self) -> None:
        self.bad(self.crashing, "an update whose daemon crashes", "B", BAD["crash"])

    def bad(self, bundle: Path, what: str, good: str, bad: Bad) -> None:
        """A box whose good slot is `good` installs a bundle that must be left again."""
        step(what)
        spare = "B" if good == "A" else "A"
        self.box.ssh("rm -f /var/tmp/*.raucb")
        self.box.send(bundle, "/var/tmp/bad.raucb")
        self.box.ssh("samovar update install /var/tmp/bad.raucb", patience_s=900)
        self.box.ssh("rm /var/tmp/bad.raucb")
        began = time.monotonic()
        self.box.restart("samovar update restart")
        for count in range(1, bad.tries + 1):
            self.box.console(f"samovar: slot {spare}, try {count}")
        self.box.console(f"samovar: slot {good}, try 1")
        self.box.reachable()
        self.lane.ready(self.box)
        print(f"restart to healthy fallback: {time.monotonic() - began:.0f} s")
        held = until(lambda: self.state()["state"] == "fell-back")
        state = self.state()
        point("it fell back by itself", held and state["slot"] == good and state["spare"]["standing"] == "bad", state)
        self.kept()
        tried = self.env()
        point(f"slot {spare} is not tried again", tried.get(f"{spare}_OK") == "0" or tried.get(f"{spare}_TRY") == "3", tried)
        said = self.box.ssh("journalctl -o cat -u samovar-confirm")
        wanted = rf"version {re.escape(version(bundle))} fell back: {bad.why}"
        point("the journal says so", bool(re.search(wanted, said)), said[-500:])
        shown = until(lambda: bool(re.search(wanted.replace(" ", r"\s+"), self.box.text())))
        point("the console says so", shown, self.box.text()[-1500:])
        self.on_ledger("installed", *bad.steps, "fell-back")

    def without_network(self) -> None:
        step("three starts without a network, each ended by a power cut")
        self.box.stop()
        self.box.wired = False
        for _ in range(3):
            self.box.start()
            self.box.console("samovar: slot B, try 1")
            self.box.console(r"\] ledger serving|!!\] ledger serving")
            # The counter is reset as soon as the daemon runs.
            time.sleep(20)
            self.box.cut()
        self.box.wired = True
        self.boot("B")
        point("the slot is as good as before", self.env().get("B_TRY") in ("0", "1") and self.state()["standing"] == "confirmed", self.env())

    def rescue(self) -> None:
        step("no slot left to try")
        self.box.send(self.good, "/var/tmp/good.raucb")
        self.box.restart(f"grub-editenv {GRUBENV} set A_OK=0 B_OK=0 && systemctl reboot")
        self.box.console("samovar: slot B, try rescue")
        point("the console names it", bool(self.box.console("RESCUE")))
        self.box.reachable()
        active = self.box.ssh("systemctl is-active samovar", check=False)
        point("the ledger does not run", active == "inactive", active)
        said = self.box.ssh("samovar update install /var/tmp/good.raucb 2>&1 && samovar update restart", check=False, patience_s=900)
        self.boot("A")
        point("an update from there is started", "slot A" in said or "A  " in said, said)
        self.confirmed("A", version(self.good))
        self.kept()


def version(bundle: Path) -> str:
    return bundle.stem.removeprefix("samovar-")
