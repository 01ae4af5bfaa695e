"""Debian hosts with systemd and the package, on a bridge; the cluster on them, and what was written to it."""

import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "fleet"))
import nspawn  # noqa: E402
from nspawn import run  # noqa: E402
from page import Wrong  # noqa: E402

NETWORK = "10.79.0"
OUTSIDE = f"{NETWORK}.1"
# For a debug build on a busy machine to get anywhere, in seconds.
PATIENCE_S = 120
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8")
DATA = "/var/lib/samovar"


def until(what: str, holds, patience_s: float = PATIENCE_S):
    """Waits until it holds, and answers what it gave; that it does not in time is wrong."""
    end = time.monotonic() + patience_s
    while not (found := holds()):
        if time.monotonic() > end:
            raise Wrong(f"not within {patience_s} s: {what}")
        time.sleep(0.3)
    return found


class Shell:
    """Root's shell on a machine with a ledger."""

    name: str

    def sh(self, command: str, given: str = "", patience_s: float = PATIENCE_S) -> tuple[int, str]:
        """Exit status of a command, and all that it said. A failure anywhere in a pipe counts."""
        raise NotImplementedError

    def do(self, command: str, given: str = "") -> str:
        """What the rehearsal does itself, which must succeed."""
        ended, said = self.sh(command, given)
        if ended:
            raise Wrong(f"{self.name}: `{command}` ended with {ended}: {said}")
        return said

    def json(self, command: str) -> dict | None:
        """What a command shows as JSON, if it does."""
        _, said = self.sh(f"{command} --output json 2>/dev/null")
        try:
            return json.loads(said)
        except json.JSONDecodeError:
            return None

    def doctor(self) -> dict[str, dict]:
        """The doctor's checks by their names."""
        shown = self.json("samovar doctor")
        if not shown:
            raise Wrong(f"{self.name}: the doctor says nothing: {self.sh('samovar doctor')[1]}")
        return {check["name"]: check for check in shown["checks"]}

    def ill(self, *names: str) -> None:
        """The doctor says no to each of these, soon."""
        self.answers("no", names)

    def well(self, *names: str) -> None:
        """The doctor says yes to each of these, soon."""
        self.answers("yes", names)

    def answers(self, answer: str, names: tuple[str, ...]) -> None:
        try:
            until(f"the doctor says {answer}", lambda: all(self.doctor()[name]["answer"] == answer for name in names), 60)
        except Wrong:
            checks = self.doctor()
            raise Wrong(f"{self.name}: the doctor does not say {answer}: {[checks[name] for name in names]}") from None


class Host(nspawn.Machine, Shell):
    """One host. Its ledger and /srv share a disk of their own; the rest lies over the base system."""

    def __init__(self, work: Path, base: Path, number: int):
        name = f"box-0{number}"
        super().__init__(name, work / name, f"samovar-runbooks-{os.getpid()}-{name}")
        self.base, self.address = base, f"{NETWORK}.1{number}"
        self.disk = self.place / "disk"

    def make(self) -> None:
        """A new machine, with nothing on its disks. One that was there before is gone for good."""
        if self.disk.is_mount():
            run("umount", self.disk)
        shutil.rmtree(self.place, ignore_errors=True)
        for directory in ("disk", "work", "tree", "upper/etc/systemd/network"):
            (self.place / directory).mkdir(parents=True)
        etc = self.place / "upper/etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        names = "".join(f"{NETWORK}.1{n} box-0{n}\n" for n in range(1, 6))
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")
        (etc / "systemd/network/10-host0.network").write_text(
            f"[Match]\nName=host0\n[Network]\nAddress={self.address}/24\nLinkLocalAddressing=no\n")
        image = self.place / "disk.img"
        run("truncate", "-s", "1536M", image)
        run("mkfs.ext4", "-q", image)
        run("mount", "-o", "loop", image, self.disk)
        for directory in ("samovar", "srv"):
            (self.disk / directory).mkdir()

    def binds(self) -> dict[Path, str]:
        return {self.disk / "samovar": DATA, self.disk / "srv": "/srv"}

    def root(self) -> Path:
        tree = self.place / "tree"
        options = f"lowerdir={self.base},upperdir={self.place}/upper,workdir={self.place}/work"
        run("mount", "-t", "overlay", "overlay", "-o", options, tree)
        return tree

    def up(self) -> None:
        """Switches it on, and waits until it has started."""
        self.start()
        until(f"{self.name} has started (its console: {self.log})", lambda: self.sh("systemctl is-system-running")[1].strip() in ("running", "degraded"))

    def leader(self) -> str | None:
        """Its PID 1, as seen from here."""
        for file in self.group.rglob("cgroup.procs"):
            try:
                for process in file.read_text().split():
                    if any(line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2
                           for line in Path(f"/proc/{process}/status").read_text().splitlines()):
                        return process
            except OSError:
                continue
        return None

    def sh(self, command: str, given: str = "", patience_s: float = PATIENCE_S) -> tuple[int, str]:
        leader = self.leader()
        if not leader:
            return 255, "the host is off"
        words = ["nsenter", "--target", leader, "--all", "env", "-i", *ENVIRONMENT, "bash", "-c", f"cd; set -o pipefail; {command}"]
        try:
            done = subprocess.run(words, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                  timeout=patience_s, check=False)
        except subprocess.TimeoutExpired as late:
            return 124, f"no end within {patience_s} s: {(late.stdout or b'').decode(errors='replace')}"
        return done.returncode, done.stdout

    def carry(self, file: str, to: "Host") -> None:
        """Takes one of root's files over to another host."""
        to.do(f"umask 077; cat > {file}", self.do(f"cat {file}"))

    def cluster(self) -> dict | None:
        return self.json("samovar node list")

    def own(self) -> dict:
        """What it knows of itself as a node of the cluster."""
        return next(node for node in self.cluster()["nodes"] if node["name"] == self.name)

    def process(self) -> str:
        return self.do("systemctl show samovar --property MainPID --value").strip()

    def kept(self, path: str) -> Path:
        """A file of its data directory, from outside."""
        return self.disk / "samovar" / path


class Cluster:
    """The hosts, and every value that the ledger acknowledged."""

    def __init__(self, work: Path, base: Path):
        self.all = [Host(work, base, number) for number in range(1, 6)]
        self.hosts, self.values, self.token = self.all[:3], {}, ""
        # A virtual machine with its source of time, or why there is none.
        self.guest, self.time, self.no_guest = None, None, ""

    def each(self, what, hosts=None) -> None:
        """Does something on several hosts at once."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(what, hosts or self.hosts))

    def off(self) -> None:
        for host in self.all:
            host.off()
            if host.disk.is_mount():
                subprocess.run(["fsfreeze", "-u", host.disk], stderr=subprocess.DEVNULL, check=False)
                subprocess.run(["umount", host.disk], check=False)

    def init(self) -> None:
        """Three hosts, and a ledger on the first (docs/operate/systemd.md)."""
        def boot(host):
            host.make()
            host.up()
        self.each(boot)
        first = self.hosts[0]
        first.do(f"runuser -u samovar -- samovar init --data {DATA} --name box-01")
        first.do("systemctl start samovar")
        self.token = first.do(f"cat {DATA}/admin.token").strip()

    def ask(self, host: Host, method: str, path: str, body: bytes | None = None, patience_s: float = 20) -> tuple[int, bytes]:
        """Status and body; 0 if nobody answers."""
        try:
            context = ssl.create_default_context(cafile=str(host.kept("ca.pem")))
            context.check_hostname = False
            connection = http.client.HTTPSConnection(host.address, 8443, timeout=patience_s, context=context)
            connection.request(method, path, body=body, headers={"Authorization": f"Bearer {self.token}", "Content-Type": "text/plain"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()

    def put(self, host: Host) -> int:
        """Writes a value of its own key; status. What is acknowledged must stay."""
        key, value = f"rehearsal/{uuid.uuid4()}", os.urandom(12).hex().encode()
        status, _ = self.ask(host, "PUT", f"/v1/keys/{key}", value)
        if status in (200, 201, 204):
            self.values[key] = value
        return status

    def write(self, host: Host | None = None, count: int = 10) -> None:
        """So many values are taken."""
        for _ in range(count):
            until("a write is taken", lambda: self.put(host or self.hosts[0]) in (200, 201, 204), 60)

    def level(self, hosts=None, voters: int = 3) -> None:
        """Each of these nodes sees so many voters, all of them live and none behind."""
        for host in hosts or self.hosts:
            def seen(host=host):
                shown = host.cluster()
                return (shown and shown["voters"] == shown["live_voters"] == voters and shown["has_quorum"]
                        and not any(node.get("trails") for node in shown["nodes"]))
            try:
                until(f"{host.name} sees {voters} live voters", seen)
            except Wrong as wrong:
                raise Wrong(f"{wrong}: {host.cluster()}\n{host.sh('journalctl -u samovar -n 15 --no-pager -o cat')[1]}") from None

    def hold(self, hosts=None) -> None:
        """Every node has every value that was ever acknowledged, and takes another."""
        for host in hosts or self.hosts:
            for key, value in self.values.items():
                status, read = self.ask(host, "GET", f"/v1/keys/{key}")
                if (status, read) != (200, value):
                    raise Wrong(f"{host.name}: {key} was acknowledged with {value}, and is {status} {read[:200]} now")
            self.write(host, 2)
