"""Points of tests/fleet/run.

usage: lane.py SLOT.squashfs GOOD.raucb        in namespaces of its own (network, mounts)
       lane.py SLOT.squashfs lynis LYNIS.deb
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "tests/image"))
import lynis  # noqa: E402
from boxes import HOST, NETWORK, Box  # noqa: E402
from checks import point, result, step, until  # noqa: E402
from load import Load  # noqa: E402
from nspawn import fabric  # noqa: E402

ANSIBLE = os.environ["SAMOVAR_ANSIBLE"]
WATCH_S = 10
# Of the 80 that are asked for on the disk image; eight settings of the kernel are not the slot's here.
LYNIS_INDEX_MIN = 78


def main() -> int:
    slot, good = (Path(argument).resolve() for argument in (sys.argv[1], sys.argv[-1]))
    work = Path(tempfile.mkdtemp(prefix="samovar-fleet.", dir="/var/tmp"))
    # Ended from outside, it still takes its boxes along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    fabric(HOST)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", work / "ops"], check=True)
    lane = Lane(slot, good, work)
    try:
        if sys.argv[2] == "lynis":
            lane.lynis(good)
        else:
            lane.run()
    except (RuntimeError, TimeoutError, subprocess.SubprocessError, OSError) as error:
        point("the lane ran to its end", False, error)
    finally:
        for box in lane.boxes:
            box.off()
        if os.environ.get("SAMOVAR_KEEP"):
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)
    return result("tests/fleet")


class Lane:
    """Three boxes and who looks after them."""

    def __init__(self, slot: Path, good: Path, work: Path):
        self.work, self.good = work, good
        self.version = good.name.removeprefix("samovar-").removesuffix(".raucb")
        self.boxes = [Box(work, number, slot, work / "ops") for number in (1, 2, 3)]
        self.inventory = work / "inventory.yml"
        self.sites = work / "sites"
        self.sites.mkdir()

    def run(self) -> None:
        self.begin()
        self.form()
        self.walls()
        self.settings()
        self.sick_peer()
        self.update()
        self.again()

    def medium(self, box: Box, token: str = "") -> None:
        """The site file of a new box, where its ESP would be, with the join token if it joins."""
        peers = [other.address for other in self.boxes if other is not box]
        join = f'join = "https://{self.boxes[0].address}:8443"\n' if box is not self.boxes[0] else ""
        text = (f'hostname = "{box.name}"\nssh_keys = ["{(self.work / "ops.pub").read_text().strip()}"]\nencryption = "none"\n'
                f'[network]\naddress = "{box.address}/24"\ngateway = "{HOST}"\n[cluster]\npeers = {json.dumps(peers)}\n{join}')  # fmt: skip
        (self.sites / f"{box.name}.toml").write_text(text)
        (box.efi / "samovar/site.toml").write_text(text)
        if token:
            (box.efi / "samovar/join.token").write_text(token)

    def begin(self) -> None:
        step("the first box")
        first = self.boxes[0]
        self.medium(first)
        first.start()
        first.reachable()
        first.serves()
        point("the first box serves", True)

    def lynis(self, package: Path) -> None:
        """What lynis says of a box that has this machine's kernel; its settings are another's, so that the index is a little lower."""
        self.begin()
        lynis.judge(*lynis.heard(self.boxes[0], package, self.work), index_min=LYNIS_INDEX_MIN)

    def token(self) -> str:
        """A join token, made on the first box."""
        return self.boxes[0].ssh("cd /run && samovar node token --save t >/dev/null && cat t && rm t")

    def form(self) -> None:
        step("two more join at their first boot")
        second, third = self.boxes[1:]
        token = self.token()
        self.medium(second, token)
        second.start()
        second.reachable()
        second.serves()
        # The token of the second is used up: the third says so, and waits for a good one.
        self.medium(third, token)
        third.start()
        third.reachable()
        problem = until(lambda: "used" in third.ssh("cat /run/samovar/problem", check=False))
        point("a token that was used is told on the console", problem, third.ssh("cat /run/samovar/problem", check=False))
        made = third.ssh("ls /var/lib/samovar", check=False)
        point("and no ledger is made in its stead", "log.vkey" not in made, made)
        third.ssh(f"umask 077; echo {self.token()} > /var/lib/samovar-site/join.token")
        third.serves()
        held = until(lambda: self.cluster()["live_voters"] == 3 and self.cluster()["can_lose"] == 1)
        point("three voters, one may be lost", held, self.cluster())
        for box in (second, third):
            media = sorted(path.name for path in (box.efi / "samovar").iterdir())
            point(f"no token is left on the medium of {box.name}", media == ["provisioned", "site.toml"], media)
            left = box.ssh("ls /var/lib/samovar-site; grep -rls samovar_join_ /run /var/lib /efi; true")
            point("nor on the box", "join.token" not in left and "/run" not in left and "/var" not in left, left)
        point("the console has nothing to tell", until(lambda: third.ssh("cat /run/samovar/problem; true", check=False).endswith("No such file or directory")))
        first = self.boxes[0]
        (self.work / "ca.pem").write_text(first.ssh("cat /var/lib/samovar/ca.pem") + "\n")
        self.admin = first.ssh("cat /var/lib/samovar/admin.token")
        for box in self.boxes:
            failed = box.ssh("systemctl --failed --plain --no-legend")
            point(f"no unit of {box.name} has failed", failed == "", failed)

    def walls(self) -> None:
        step("who reaches the port for peers")
        first, second = self.boxes[:2]
        point("a stranger does not", not opens(first.address, 8444))
        point("though he reaches the API", opens(first.address, 8443))
        at_peer = f"timeout 3 bash -c 'exec 3<>/dev/tcp/{first.address}/8444' && echo open; true"
        as_daemon = second.ssh(f"runuser -u samovar -- {at_peer}", check=False)
        point("the daemon of a peer does", "open" in as_daemon, as_daemon)
        as_root = second.ssh(at_peer, check=False)
        point("nobody else on that box does, root included", "open" not in as_root, as_root)
        out = second.ssh(f"runuser -u samovar -- timeout 3 bash -c 'exec 3<>/dev/tcp/{HOST}/8444' && echo open; true", check=False)
        point("and the daemon reaches no stranger", "open" not in out, out)

    def cluster(self, box: Box | None = None) -> dict:
        return json.loads((box or self.boxes[0]).ssh("samovar node list --output json"))

    def playbook(self, name: str, **variables: object) -> subprocess.CompletedProcess:
        if not self.inventory.exists():
            hosts = {box.name: {"ansible_host": box.address} for box in self.boxes}
            options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ControlMaster=no"
            common = {"ansible_user": "root", "ansible_ssh_private_key_file": str(self.work / "ops"), "ansible_ssh_common_args": options,
                      "ansible_python_interpreter": "/usr/bin/python3", "site_file": "{{ inventory_dir }}/sites/{{ inventory_hostname }}.toml",
                      "update_watch_s": WATCH_S}  # fmt: skip
            # YAML takes JSON.
            self.inventory.write_text(json.dumps({"samovar": {"hosts": hosts, "vars": common}}))
        words = [word for pair in variables.items() for word in ("-e", "=".join(map(str, pair)))]
        ran = subprocess.run([ANSIBLE, "-i", self.inventory, f"ansible/{name}", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        (self.work / f"ansible-{time.monotonic():.0f}.log").write_text(ran.stdout + ran.stderr)
        return ran

    def settings(self) -> None:
        step("ansible/site.yml")
        ran = self.playbook("site.yml")
        point("the boxes have these settings already: nothing changes", ran.returncode == 0 and changed(ran) == {0}, recap(ran))
        file = self.sites / "box-02.toml"
        good = file.read_text()
        file.write_text(good.replace("hostname", "hostnam"))
        ran = self.playbook("site.yml")
        refused = ran.returncode != 0 and "line 1: `hostnam`" in ran.stdout + ran.stderr
        point("a wrong file is refused, by line, and changes nothing", refused and changed(ran) == {0}, recap(ran))
        file.write_text(good + f'[firewall]\nout = ["{HOST}:5999"]\n')
        ran = self.playbook("site.yml")
        rules = self.boxes[1].ssh("nft list set inet samovar out4")
        point("a change arrives, on that box alone", ran.returncode == 0 and changed(ran) == {0, 2} and "5999" in rules, (recap(ran), rules))
        ran = self.playbook("site.yml")
        point("run again it changes nothing", ran.returncode == 0 and changed(ran) == {0}, recap(ran))

    def sick_peer(self) -> None:
        step("one peer is sick: the update does not begin")
        first, _, third = self.boxes
        third.ssh("systemctl stop samovar")
        until(lambda: self.cluster()["live_voters"] == 2)
        refused = first.ssh("samovar update restart", check=False)
        point("a box gets no permit to go down", "box-03" in refused and "not started again" in refused, refused)
        boots = [len(box.boots) for box in self.boxes]
        ran = self.playbook("update.yml", update_bundle=self.good)
        point("ansible/update.yml stops by itself", ran.returncode != 0, recap(ran))
        point("and restarted nothing", [len(box.boots) for box in self.boxes] == boots and self.versions() == ["0.1.0"] * 3, self.versions())
        third.ssh("systemctl start samovar")
        third.serves()
        point("cured, one may be lost again", until(lambda: self.cluster()["can_lose"] == 1), self.cluster())

    def versions(self) -> list[str]:
        states = [json.loads(box.ssh("samovar update status --output json")) for box in self.boxes]
        return [state["version"] for state in states]

    def update(self) -> None:
        step("the update, under load")
        began = time.monotonic()
        with Load([box.address for box in self.boxes], self.work / "ca.pem", self.admin) as load:
            ran = self.playbook("update.yml", update_bundle=self.good)
        print(f"three boxes: {time.monotonic() - began:.0f} s; {load.done} requests, {load.told_to_wait} told to wait, {load.moved} went to another "
              f"node, the longest took {load.longest_s:.1f} s")  # fmt: skip
        point("ansible/update.yml ends well", ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:])
        point("every box runs the new version", self.versions() == [self.version] * 3, self.versions())
        point("each was started once, into its other slot", [box.boots for box in self.boxes] == [["A", "B"]] * 3, [box.boots for box in self.boxes])
        point("no request failed", not load.failed and load.done > 100, load.failed[:5] or load.done)
        point("two of three nodes were ready all the time", load.ready_min >= 2, load.ready_min)
        lost = [key for key, value in load.written.items() if load.value(key) != value]
        point("every acknowledged write is there", not lost, lost[:5])
        held = until(lambda: json.loads(self.boxes[0].ssh("samovar permit show --output json"))["permit"] is None)
        point("the permit is given back", held)
        for box in self.boxes:
            steps = {event["step"] for event in json.loads(box.ssh("samovar update status --output json"))["events"]}
            point(f"{box.name}: installed, trial and confirmed are told", {"installed", "trial", "confirmed"} <= steps, steps)

    def again(self) -> None:
        step("run again")
        hashes = [self.fingerprint(box) for box in self.boxes]
        boots = [len(box.boots) for box in self.boxes]
        ran = self.playbook("update.yml", update_bundle=self.good)
        point("the second run changes nothing", ran.returncode == 0 and changed(ran) == {0}, recap(ran))
        same = hashes == [self.fingerprint(box) for box in self.boxes] and boots == [len(box.boots) for box in self.boxes]
        point("settings, units and slots are what they were, and no box was started again", same)

    def fingerprint(self, box: Box) -> str:
        return box.ssh("(find /var/lib/samovar-site /var/lib/samovar-update /etc /run/systemd/network /run/samovar -type f -print0 | sort -z"
                       " | xargs -0 sha256sum; nft list ruleset | grep -v counter) | sha256sum; ls -l /slots | sha256sum")  # fmt: skip


def opens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=3).close()
    except OSError:
        return False
    return True


def recap(ran: subprocess.CompletedProcess) -> str:
    """Last lines of what Ansible said."""
    return (ran.stdout + ran.stderr)[-1500:]


def changed(ran: subprocess.CompletedProcess) -> set[int]:
    """Numbers of changes that its recap names."""
    return {int(count) for count in re.findall(r"changed=(\d+)", ran.stdout)}


if __name__ == "__main__":
    sys.exit(main())
