"""The virtual address of three nodes: who holds it, and how fast it moves. `tests/vip/run` calls this in namespaces."""

import datetime
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import jinja2
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "ansible/roles/vip"
SAMOVAR = os.environ["SAMOVAR_BIN"]
NODES = (1, 2, 3)
VIP = "10.78.0.100"
# The address moves within this time, in seconds.
MOVES_WITHIN = 2.0
# For a debug build on a busy machine to get there.
PATIENCE = 60.0
POLL = 0.02


def address(node):
    return f"10.78.0.{node}"


def run(*words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"vip: {' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


class Lane:
    """Network, daemons and keepalived."""

    def __init__(self, directory):
        self.directory = directory
        self.daemons, self.keepers, self.cut, self.down = {}, {}, set(), set()
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "addr", "add", "10.78.0.254/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")
        for node in NODES:
            name = f"node-{node}"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", name, "master", "bridge", "up")
            run("ip", "-n", name, "addr", "add", f"{address(node)}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")

    def data(self, node):
        return self.directory / f"box-{node:02}"

    def begin(self):
        self.at(1, "init", "--name", "box-01", "--listen", f"{address(1)}:8443")
        self.serve(1)
        first = f"https://{address(1)}:8443"
        for node in NODES[1:]:
            token = self.directory / f"token-{node}"
            self.at(1, "node", "token", "--save", token)
            join = ["join", first, "--token-file", token, "--name", f"box-{node:02}"]
            self.at(node, *join, "--peers", f"{address(node)}:8444")
            self.serve(node)
        self.until("every node votes", lambda: all(self.is_well(node) for node in NODES))

    def serve(self, node):
        config = self.data(node).with_suffix(".toml")
        config.write_text(f'[listen]\napi = "0.0.0.0:8443"\n[peers]\nlisten = "{address(node)}:8444"\n')
        log = self.data(node).with_suffix(".log").open("a")
        words = [SAMOVAR, "serve", "--config", config, "--data", self.data(node)]
        self.daemons[node] = self.spawn(node, words, log)
        self.down.discard(node)
        self.until(f"node {node} answers", lambda: self.cluster(node) is not None)

    def spawn(self, node, words, log):
        return subprocess.Popen([*self.within(node), *map(str, words)], stdout=log, stderr=log)

    def within(self, node):
        return ["nsenter", f"--net=/run/netns/node-{node}"]

    def at(self, node, *words):
        """A command of the binary, on the machine of a node."""
        return run(*self.within(node), SAMOVAR, *words, "--data", self.data(node))

    def cluster(self, node):
        words = [*self.within(node), SAMOVAR, "node", "list", "--output", "json", "--data", self.data(node)]
        shown = subprocess.run(words, capture_output=True, text=True)
        return json.loads(shown.stdout) if shown.returncode == 0 else None

    def is_well(self, node):
        """Whether it hears all others, and knows of nothing that is wrong with any of them: none gets a permit before."""
        seen = self.cluster(node) or {"live_voters": 0, "nodes": []}
        return seen["live_voters"] == len(NODES) and not any(shown["errors"] for shown in seen["nodes"])

    def keep(self):
        """Starts keepalived on each node, with the role's template and its defaults."""
        defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
        environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)
        template = environment.from_string((ROLE / "templates/keepalived.conf.j2").read_text())
        for node in NODES:
            own = {
                "vip_address": f"{VIP}/24",
                "vip_nodes": [address(n) for n in NODES],
                "vip_own": address(node),
                "vip_check": f"{SAMOVAR} ready --data {self.data(node)}",
                "vip_script_user": "root",
            }
            config = self.directory / f"keepalived-{node}.conf"
            config.write_text(template.render(**(defaults | own)))
            run(*self.within(node), "keepalived", "--config-test", "--use-file", config)
            files = [f"--{name}={self.directory}/{name}-{node}" for name in ("pid", "vrrp_pid", "checkers_pid")]
            words = ["keepalived", "--dont-fork", "--log-console", "--vrrp", f"--use-file={config}", *files]
            self.keepers[node] = self.spawn(node, words, config.with_suffix(".log").open("w"))
        self.until("one node holds the address", lambda: len(self.holders()) == 1)

    def tell(self, holder, since_s):
        """Prints what all said since then: why the address took its time."""
        print(f"node {holder} held it; what was said since {time.strftime('%H:%M:%S', time.gmtime(since_s))} UTC:")
        since = datetime.datetime.fromtimestamp(since_s - 1, datetime.UTC).isoformat(timespec="milliseconds")
        for node in NODES:
            print(f"-- keepalived of node {node}")
            print("\n".join(self.directory.joinpath(f"keepalived-{node}.log").read_text().splitlines()[-12:]))
            print(f"-- daemon of node {node}")
            lines = self.data(node).with_suffix(".log").read_text().splitlines()
            print("\n".join(line for line in lines if line[:23] >= since[:23]), flush=True)

    def holders(self):
        held = [n for n in NODES if VIP in run("ip", "-n", f"node-{n}", "-4", "addr", "show", "dev", "eth0")]
        return set(held)

    def until(self, what, holds):
        begun = time.monotonic()
        while not holds():
            if time.monotonic() - begun > PATIENCE:
                raise SystemExit(f"vip: {what}: not within {PATIENCE} s; journals are in {self.directory}")
            time.sleep(0.1)
        return time.monotonic() - begun

    def answers(self):
        """The name of the node that answers at the virtual address, if one is ready there."""
        context = ssl.create_default_context(cafile=self.data(1) / "ca.pem")
        context.check_hostname = False
        try:
            connection = http.client.HTTPSConnection(VIP, 8443, timeout=0.25, context=context)
            connection.request("GET", "/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    # What befalls a node; each is undone by the other of its name.

    def cut_off(self, node):
        self.cut.add(node)
        # The line stays up: nobody is told by its carrier.
        for chain in ("INPUT", "OUTPUT"):
            run(*self.within(node), "iptables", "-w", "-I", chain, "!", "-o" if chain == "OUTPUT" else "-i", "lo", "-j", "DROP")

    def join_again(self, node):
        for chain in ("INPUT", "OUTPUT"):
            run(*self.within(node), "iptables", "-w", "-F", chain)
        self.cut.discard(node)

    def signal(self, node, which):
        # `nsenter` became the daemon itself.
        self.daemons[node].send_signal(which)

    def kill(self, node):
        self.signal(node, signal.SIGKILL)
        self.daemons[node].wait()

    def freeze(self, node):
        self.signal(node, signal.SIGSTOP)

    def thaw(self, node):
        self.signal(node, signal.SIGCONT)

    def stop(self, node):
        self.signal(node, signal.SIGTERM)
        self.daemons[node].wait()

    def drain(self, node):
        self.at(node, "node", "drain", f"box-{node:02}", "--reason", "a test")

    def resume(self, node):
        self.at(node, "node", "resume", f"box-{node:02}")


class Watch(threading.Thread):
    """Looks again and again who holds the address, and counts when two nodes do that clients reach."""

    def __init__(self, lane):
        super().__init__(daemon=True)
        self.lane, self.looks, self.double, self.over = lane, 0, [], False

    def run(self):
        while not self.over:
            reachable = self.look()
            self.looks += 1
            # One after the other is looked at: in a second look at once, who let go in the first does not hold it.
            if len(reachable) > 1 and len(again := self.look()) > 1:
                self.double.append((time.monotonic(), sorted(again)))
            time.sleep(POLL)

    def look(self):
        before = set(self.lane.cut)
        # One that was cut off, or came back, within the look does not count.
        return self.lane.holders() - before - self.lane.cut


def move(lane, what, happens, undo):
    """Something happens to the holder; seconds until clients are answered at the address by another node."""
    (holder,) = lane.holders()
    lane.until("the address answers before", lane.answers)
    begun, begun_s = time.monotonic(), time.time()
    failed = []

    def befall():
        try:
            happens(holder)
        except BaseException as error:  # noqa: BLE001 - also of `run`, which ends the program
            failed.append(error)

    thread = threading.Thread(target=befall)
    thread.start()
    took = None
    while time.monotonic() - begun < PATIENCE and not failed:
        if lane.holders() - {holder} and lane.answers():
            took = time.monotonic() - begun
            break
        time.sleep(POLL)
    thread.join()
    if failed:
        raise SystemExit(f"vip: {what}: {failed[0]}")
    if took is None:
        raise SystemExit(f"vip: {what}: nobody took the address over within {PATIENCE} s; journals are in {lane.directory}")
    lane.until("the holder of before lets go of it", lambda: len(lane.holders()) == 1)
    if took > MOVES_WITHIN and what.startswith("cut off"):
        lane.tell(holder, begun_s)
    undo(holder)
    lane.until("all are there again", lambda: all(lane.is_well(node) for node in NODES))
    lane.until("one node holds the address", lambda: len(lane.holders()) == 1 and lane.answers())
    return took


def main():
    directory = Path(tempfile.mkdtemp(prefix="samovar-vip-", dir="/var/tmp"))
    lane = Lane(directory)
    lane.begin()
    lane.keep()
    lane.until("the address answers", lane.answers)
    watch = Watch(lane)
    watch.start()
    took = {}
    for name, happens, undo in (
        ("cut off", lane.cut_off, lane.join_again),
        ("killed", lane.kill, lane.serve),
        ("cut off again", lane.cut_off, lane.join_again),
        ("frozen", lane.freeze, lane.thaw),
        ("drained", lane.drain, lane.resume),
        ("stopped", lane.stop, lane.serve),
    ):
        took[name] = move(lane, name, happens, undo)
        print(f"holder {name}: another answers at the address after {took[name]:.2f} s", flush=True)
    # Who has no quorum lets go, and nobody else can have it.
    (holder,) = lane.holders()
    others = [node for node in NODES if node != holder]
    for node in others:
        lane.kill(node)
    gone = lane.until("a holder without a quorum lets go", lambda: not lane.holders())
    for node in others:
        lane.serve(node)
    lane.until("one node holds the address again", lambda: len(lane.holders()) == 1 and lane.answers())
    watch.over = True
    watch.join()
    figures = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in took.items())
    print(f"RESULT vip: {figures}; without a quorum nobody holds it after {gone:.1f} s; two that are reached held it in "
          f"{len(watch.double)} of {watch.looks} looks")
    wrong = []
    if watch.double:
        wrong.append(f"two reachable nodes held the address: {watch.double[:3]}")
    late = {name: round(seconds, 2) for name, seconds in took.items() if name.startswith("cut off") and seconds > MOVES_WITHIN}
    if late:
        wrong.append(f"the address moves within {MOVES_WITHIN} s, took {late}")
    for process in (*lane.keepers.values(), *lane.daemons.values()):
        process.terminate()
    if wrong:
        sys.exit(f"vip: {'; '.join(wrong)}; journals are in {directory}. Once more: tests/vip/run")
    subprocess.run(["rm", "-rf", str(directory)], check=True)


main()
