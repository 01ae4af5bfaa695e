"""The rehearsals: each makes an incident, types what the page says, and sees that it is over."""

import socket
import subprocess
import time

from hosts import DATA, Cluster, Host, until
from page import OPERATE, NotRun, Page, Wrong

# What a page uses as an example, and what stands for it here.
NAMES: dict[str, dict[str, str]] = {
    # Each node names the file after itself.
    "quorum": {"/run/box-01.json": "/run/$(hostname).json"},
    "blobs": {"HOST:8443": "box-01:8443", "@FILE": "@/root/blob", "ca.pem": f"{DATA}/ca.pem", "admin.token": f"{DATA}/admin.token"},
    "traffic": {"revoke ID": "revoke $(cat astray.id)"},
}

# Pages without a rehearsal here, and where their commands are run instead, if anywhere.
ELSEWHERE = {
    "monitoring": "needs Prometheus and Alertmanager as services; tests/monitoring/run has them as processes, and runs their checkers",
    "stick": "needs a box of the image; tests/image/run DISK esp puts a strange stick in",
    "rotate": "has no block of commands; rotations_under_load of tests/system rotates every secret",
}

# No incident is made for these: their commands are typed on a cluster that is well.
TYPED = {"cpu", "latency", "memory"}

NO_SMART = "the disk is a file, which has no SMART"
BAD = "[limits]\nconections = 512\n"


def path(name: str) -> str:
    return "cluster.md" if name == "cluster" else f"runbooks/{name}.md"


def missing() -> list[str]:
    """Runbooks that are neither rehearsed nor known to be elsewhere."""
    pages = {page.stem for page in (OPERATE / "runbooks").glob("*.md")} - {"README"}
    return sorted(pages - ALL.keys() - ELSEWHERE.keys())


def configure(host: Host, toml: str | None) -> None:
    """Puts a configuration in place; nothing reads it yet."""
    host.do("rm -f /etc/samovar/samovar.toml" if toml is None else "install -D -m 640 -g samovar /dev/stdin /etc/samovar/samovar.toml", toml or "")


def settings(page: Page) -> str:
    """The settings that the page says, those of its last block."""
    return page.path.read_text().split("```toml\n")[-1].split("```")[0].replace("\n   ", "\n").strip() + "\n"


def emptied(host: Host) -> None:
    """The data directory of a node that is to come back as a new one (docs/operate/cluster.md, Take a node out)."""
    host.do(f"systemctl stop samovar; find {DATA} -mindepth 1 -delete")


def join(lane: Cluster, host: Host, through: Host | None = None) -> None:
    """A machine with an empty data directory becomes a voter (docs/operate/cluster.md, Begin)."""
    through = through or lane.hosts[0]
    through.do(f"rm -f {host.name}.token; samovar node token --save {host.name}.token")
    through.carry(f"{host.name}.token", host)
    host.do(f"runuser -u samovar -- samovar join https://{through.name}:8443 --token-file - --data {DATA} --name {host.name} < {host.name}.token")
    host.do("systemctl start samovar")
    through.do(f"rm {host.name}.token")


def form(lane: Cluster) -> None:
    """Three voters and some values."""
    for host in lane.hosts[1:]:
        join(lane, host)
    lane.level()
    lane.write(count=20)


def leader(lane: Cluster) -> Host:
    """Who leads, as the first node knows it."""
    return next(host for host in lane.hosts if host.name == lane.hosts[0].cluster()["leader"])


def killed(host: Host) -> None:
    host.do("systemctl kill --signal=KILL --kill-whom=main samovar")


def cluster(page: Page, lane: Cluster) -> None:
    """From one node to three; a machine that is gone for good; service by day; out, and a node for reading."""
    first, second, third = lane.hosts
    # The lane's own three end, but for the first.
    for host in (third, second):
        first.do(f"samovar node remove {host.name}")
        emptied(host)

    page.run(first, "samovar node token --save box-02.token")
    first.carry("box-02.token", second)
    page.run(second, "runuser -u samovar -- samovar join https://box-01:8443")
    page.run(second, "systemctl start samovar")
    join(lane, third)
    lane.level()
    lane.write()
    page.run(lane.hosts, "samovar node list", says="3 of 3 voters, can lose 1 more")
    page.run(lane.hosts, "samovar status")
    page.run(lane.hosts, "samovar doctor", status=(0, 1), says="^lose-node +yes")

    third.off()
    lane.write(second)
    first.ill("peers")
    third.make()
    third.up()
    page.run(first, "samovar node token --replaces box-03")
    first.carry("box-03.token", third)
    page.run(third, "runuser -u samovar -- samovar join https://box-01:8443")
    page.run(third, "systemctl start samovar")
    lane.level()
    lane.hold()

    page.run(first, "samovar node drain box-02")
    until("balancers leave it", lambda: lane.ask(second, "GET", "/ready")[0] == 503)
    second.do("systemctl stop samovar")
    lane.write()
    second.do("systemctl start samovar")
    page.run(first, "samovar node resume box-02")
    until("balancers come back", lambda: lane.ask(second, "GET", "/ready")[0] == 200)
    lane.level()
    page.run(first, "samovar permit acquire --node box-02")
    page.run(third, "samovar permit show", says="box-02")
    page.run(first, "samovar permit release box-02")

    for host in (first, third):
        host.do("systemctl stop samovar")
    until("there is no quorum", lambda: second.cluster()["has_quorum"] is False)
    page.run(second, "samovar permit acquire --without-quorum")
    page.run(second, "samovar node drain box-02 --without-quorum")
    lane.each(lambda host: host.do("systemctl start samovar"), (first, third))
    lane.level()
    until("it comes to the ledger", lambda: "box-02" in first.sh("samovar permit show")[1])
    first.do("samovar node resume box-02")

    page.run(first, "samovar finalize --preview")
    page.run(first, "samovar finalize")

    page.run(first, "samovar node remove box-02")
    until("it says so itself", lambda: "was removed from the cluster" in second.sh("samovar doctor")[1])
    page.run(second, "systemctl stop samovar")
    page.run(second, "find /var/lib/samovar -mindepth 1 -delete")
    join(lane, second)
    lane.level()

    far = lane.all[3]
    far.make()
    far.up()
    page.run(first, "samovar node token --learner --save far.token")
    first.carry("far.token", far)
    far.do(f"runuser -u samovar -- samovar join https://box-01:8443 --token-file - --data {DATA} --name far < far.token; systemctl start samovar")
    until("it has everything", lambda: all(lane.ask(far, "GET", f"/v1/keys/{key}?consistency=stale")[0] == 200 for key in lane.values))
    page.run(first, "samovar node promote far")
    lane.level([*lane.hosts, far], voters=4)
    first.do("samovar node remove far")
    far.off()
    page.leave("ansible-playbook -i inventory ansible/vip.yml", "tests/vip/run moves the address; the role itself is checked by tests/fleet/lint")


def down(page: Page, lane: Cluster) -> None:
    """One daemon killed; then every one of them down, with a configuration that none of them starts with."""
    first = lane.hosts[0]
    process = first.process()
    killed(first)
    until("it starts again by itself", lambda: first.process() not in (process, "0"))
    lane.level()
    lane.write()

    lane.each(lambda host: (configure(host, BAD), killed(host)))
    until("none of them starts", lambda: all("conections" in host.sh("journalctl --unit samovar -n 20")[1] for host in lane.hosts))
    if any(lane.put(host) for host in lane.hosts):
        raise Wrong("somebody answers")
    page.run(first, "systemctl status samovar", status=(3,), says="activating|failed")
    page.run(first, "journalctl --unit samovar --since -30min", says="conections")
    page.run(first, "samovar doctor", status=(1,), says="^daemon +no")
    page.run(first, f"samovar status --data {DATA}", status=(3,), says="cannot reach")
    page.run(first, "curl --silent --cacert", status=(7,))
    page.run(first, "samovar config check", status=(1, 2), says="conections")
    lane.each(lambda host: configure(host, None))
    page.run(lane.hosts, "systemctl restart samovar")
    lane.level()
    first.well("daemon", "quorum", "ledger")


def corruption(page: Page, lane: Cluster) -> None:
    """A raft log that is damaged while its node is stopped; then a member that is not trusted any more."""
    first, _, third = lane.hosts
    before = third.own()["node"]
    third.do("systemctl stop samovar")
    for file in third.kept("raft").iterdir():
        with file.open("r+b") as disk:
            # Of its frames, the first.
            disk.seek(256)
            disk.write(b"\xa5" * 4096)
    lane.write()
    third.sh("systemctl start samovar")

    def anew():
        own = next((node for node in first.cluster()["nodes"] if node["name"] == third.name), None)
        return own and own["node"] > before and own["voter"] and own["live"]
    until("it comes back under its name with a higher id", anew)
    lane.level()
    page.run(first, "samovar node list", says="3 of 3 voters")
    page.run(third, "samovar doctor", status=(0, 1), says="built anew from its peers")
    page.run(third, "journalctl --unit samovar --since -1h --priority err", says="raft")
    if "raft" not in third.do(f"cat {DATA}/quarantine/why.json"):
        raise Wrong("quarantine/why.json does not say why")
    page.run(third, "journalctl --dmesg --grep", status=(0, 1))
    page.leave("smartctl --all /dev/sda", NO_SMART)
    page.run(third, "rm -r /var/lib/samovar/quarantine")
    page.run(third, "systemctl restart samovar")
    lane.level()
    until("nothing is said of it any more", lambda: "built anew" not in third.sh("samovar doctor")[1])
    lane.hold()

    page.run(first, "samovar node remove box-03")
    page.run(first, "samovar rotate log-key", says=r"\+")
    emptied(third)
    join(lane, third)
    lane.level()


def quorum(page: Page, lane: Cluster) -> None:
    """Three of five machines are gone for good, one of the two that are left is behind."""
    first, second = lane.hosts[:2]
    lost = lane.all[2:]
    for host in lost[1:]:
        host.make()
        host.up()
        join(lane, host)
    lane.level(lane.all, voters=5)
    second.do("systemctl stop samovar")
    lane.write()
    until("the first has everything", lambda: first.own()["trails"] == 0)
    for host in lost:
        host.off()
        host.make()
    # The second one stays down: its daemon would get from the first what it lacks.
    until("the quorum is lost", lambda: (first.cluster() or {}).get("has_quorum") is False)
    if (status := lane.ask(first, "GET", "/ready")[0]) != 503:
        raise Wrong(f"without a quorum /ready says {status}")
    first.ill("quorum", "peers")

    left = [first, second]
    page.run(first, f"samovar status --data {DATA}", says="box-05 .* no ")
    page.run(first, "journalctl --unit samovar --since -15min --priority err", status=(0, 1))
    page.run(left, "systemctl stop samovar")
    page.run(left, f"runuser -u samovar -- samovar recover --preview --data {DATA}")
    page.run(left, f"runuser -u samovar -- samovar recover --preview --data {DATA} --output json")
    first.carry("/run/box-01.json", second)
    second.carry("/run/box-02.json", first)
    lane.each(lambda host: host.do("chmod 644 /run/box-0*.json"), left)
    page.run(first, f"runuser -u samovar -- samovar recover --preview --data {DATA} --compare")
    ended, said = second.sh(f"runuser -u samovar -- samovar recover --data {DATA} --compare /run/box-01.json --reason fire --accept-loss")
    if ended == 0:
        raise Wrong(f"the one that is behind was recovered from: {said}")
    page.run(first, f"runuser -u samovar -- samovar recover --data {DATA} --compare")
    page.run(first, "systemctl start samovar")
    lane.level([first], voters=1)
    lane.hold([first])
    emptied(second)
    join(lane, second)
    third = lane.hosts[2]
    third.up()
    join(lane, third)


def certificate(page: Page, lane: Cluster) -> None:
    """A node's certificate has ended, and the CA's key that could make another is gone from the node."""
    first, second = lane.hosts[:2]
    tls = f"{DATA}/tls"
    second.do("systemctl stop samovar")
    second.do(f"""install -m 600 {tls}/ca.key ca.key
        openssl x509 -in {tls}/node.pem -out ended.pem -CA {DATA}/ca.pem -CAkey {tls}/ca.key -not_before 20240101000000Z -not_after 20250101000000Z
        cat ended.pem > {tls}/node.pem; rm {tls}/ca.key""")
    second.sh("systemctl start samovar")
    until("clients refuse it", lambda: b"expired" in lane.ask(second, "GET", "/health")[1])
    lane.write(first)
    second.ill("certificate")
    page.run(second, "openssl s_client -connect localhost:8443", says="notAfter=Jan  1 00:00:00 2025 GMT")
    page.run(second, "journalctl -u samovar --grep 'tls:'", says="ca.key")
    ended, said = second.sh("samovar rotate node")
    if ended == 0 or "ca.key" not in said:
        raise Wrong(f"samovar rotate node does not say what stands in its way: {said}")
    second.do(f"install -o samovar -g samovar -m 600 ca.key {tls}/ca.key; rm ca.key")
    page.run(second, "systemctl restart samovar")
    until("clients take it again", lambda: lane.ask(second, "GET", "/health")[0] == 200)
    second.well("certificate", "tls-key")
    lane.level()
    page.run(second, "samovar rotate node")


def storage(page: Page, lane: Cluster) -> None:
    """A disk that stands still, then disks that fill up."""
    first, second = lane.hosts[:2]
    process = second.process()
    subprocess.run(["fsfreeze", "-f", second.disk], check=True)
    try:
        # The others go on. It stands still for longer than the alert waits, and for less than the watchdog does.
        lane.write(first)
        time.sleep(12)
        lane.write(first)
        page.run(second, "journalctl --dmesg --since -1h", status=(0, 1))
        page.run(second, "cat /proc/pressure/io", says="^some avg10=")
        page.run(second, "findmnt --target /var/lib/samovar", says="/dev/loop.* ext4")
        page.leave("smartctl --all /dev/sda", NO_SMART)
    finally:
        subprocess.run(["fsfreeze", "-u", second.disk], check=True)
    lane.level()
    lane.hold()
    if second.process() != process:
        raise Wrong("the daemon did not live through it")

    def fill(host, left_mb):
        host.do(f"""free=$(df --output=avail -B 1M /srv | tail -1); fallocate -l $((free - {left_mb}))M /srv/filler""")
    lane.each(lambda host: fill(host, 100))
    until("writes are refused", lambda: lane.put(first) == 507)
    first.ill("disk")
    page.run(first, "df --human-readable", says=r"\d+%")
    page.run(first, "du --human-readable")
    page.run(first, f"samovar status --data {DATA}", says="(?i)room|reserve|space")
    lane.each(lambda host: host.do("rm /srv/filler"))
    lane.write()
    first.well("disk", "ledger")
    lane.each(lambda host: fill(host, 100))
    until("writes are refused", lambda: lane.put(first) == 507)
    lane.each(lambda host: configure(host, settings(page)))
    page.run(lane.hosts, "samovar config check")
    page.run(lane.hosts, "systemctl restart samovar")
    lane.level()
    lane.write()
    lane.each(lambda host: host.do("rm /srv/filler"))
    lane.each(lambda host: configure(host, None))
    lane.each(lambda host: host.do("systemctl restart samovar"))


def errors(page: Page, lane: Cluster) -> None:
    """Requests fail, since two of three nodes are down."""
    first, second, third = lane.hosts
    for host in (second, third):
        host.do("systemctl stop samovar")
    # A write would be waited for longer: limits.body_deadline counts too.
    if (answer := lane.ask(first, "GET", "/v1/keys/rehearsal/none", patience_s=60))[0] != 503:
        raise Wrong(f"without a quorum a read is answered with {answer}")
    page.run(first, "journalctl --unit samovar --since -15min --grep", says="GET /v1/keys/.* 503(\n.*)*SAMOVAR_REQUEST_ID=")
    page.run(first, f"samovar status --data {DATA}", says="(?i)quorum|leader")
    lane.each(lambda host: host.do("systemctl start samovar"), (second, third))


def lag(page: Page, lane: Cluster) -> None:
    """A node stands still while the others write."""
    first, _, third = lane.hosts
    third.do("systemctl freeze samovar")
    lane.write(first, 50)
    third.do("systemctl thaw samovar")
    page.run(third, "journalctl --unit samovar --since -15min")
    page.run(third, "systemctl restart samovar")


def latency(page: Page, lane: Cluster) -> None:
    page.run(lane.hosts, "time samovar put runbook/probe", says="^real")
    page.run(lane.hosts, "time samovar get runbook/probe", says="^real")


def cpu(page: Page, lane: Cluster) -> None:
    page.run(lane.hosts, "top --batch", says="samovar|node")


def memory(page: Page, lane: Cluster) -> None:
    page.run(lane.hosts, "ps -eo rss,comm", says="samovar")
    lane.each(lambda host: configure(host, settings(page)))
    page.run(lane.hosts, "samovar config check")
    page.run(lane.hosts, "systemctl restart samovar")
    lane.level()
    lane.each(lambda host: configure(host, None))
    lane.each(lambda host: host.do("systemctl restart samovar"))


def saturation(page: Page, lane: Cluster) -> None:
    """One client opens many connections."""
    first = lane.hosts[0]
    open_ones = [socket.create_connection((first.address, 8443)) for _ in range(40)]
    page.run(first, "ss --no-header --numeric --tcp", says=r"^ +40 10\.79\.0\.1")
    for connection in open_ones:
        connection.close()


def traffic(page: Page, lane: Cluster) -> None:
    """A key went astray, and somebody writes with it."""
    first = lane.hosts[0]
    first.do("samovar api-key create --name astray --role writer --save astray.token")
    first.do("cut -d_ -f2 astray.token > astray.id")
    configure(first, settings(page))
    first.do("systemctl restart samovar")
    lane.level()
    put = "curl --silent --fail --cacert /var/lib/samovar/ca.pem --header \"Authorization: Bearer $(cat astray.token)\" --upload-file /etc/hostname https://localhost:8443/v1/keys/astray"
    first.do(put)
    page.run(first, "journalctl --unit samovar --since -5min --output cat", says=f'api-key/{first.do("cat astray.id").strip()}')
    page.run(first, "samovar api-key list", says="astray")
    page.run(first, "samovar api-key revoke")
    if first.sh(put)[0] == 0:
        raise Wrong("a key that was revoked still writes")
    first.do("rm astray.token")
    configure(first, None)
    first.do("systemctl restart samovar")


def without_promises(hosts: list[Host], what) -> None:
    """Does something while what these nodes signed cannot be written down, so that they sign nothing."""
    try:
        for host in hosts:
            host.do("date '+%F %T' > /run/began")
            subprocess.run(["chattr", "+i", host.kept("promise")], check=True)
        what()
    finally:
        for host in hosts:
            subprocess.run(["chattr", "-i", host.kept("promise")], check=True)


def told(host: Host) -> bool:
    """Whether it was said since the node could not write down what it signed."""
    return host.sh("journalctl --unit samovar --since \"$(cat /run/began)\" --grep 'no checkpoint could be made'")[0] == 0


def checkpoint(page: Page, lane: Cluster) -> None:
    """The file of what a node promised cannot be written, on every node."""
    first = leader(lane)

    def behind():
        lane.write(first)
        until("it is said", lambda: told(first))
        page.run(first, "journalctl --unit samovar --since -1d --grep", says="promise")
    without_promises(lane.hosts, behind)

    def covered():
        shown = first.json(f"samovar status --data {DATA}")
        return shown and shown["checkpoint_size"] >= shown["size"]
    until("the checkpoint covers everything", covered)
    page.run(first, f"samovar status --data {DATA} --output json", says='"checkpoint_size"')


def journal(page: Page, lane: Cluster) -> None:
    """The daemon writes errors, since a file cannot be written."""
    first = leader(lane)

    def writes():
        lane.write(first)
        until("it is said", lambda: told(first))
    without_promises(lane.hosts, writes)
    page.run(first, "journalctl --unit samovar --since -15min --priority err", says="MESSAGE=no checkpoint could be made")


def blobs(page: Page, lane: Cluster) -> None:
    """Every copy of a blob is damaged, and somebody still has the file."""
    first = lane.hosts[0]
    first.do("head -c 300000 /dev/urandom > blob")
    cid = first.do("samovar blob put blob --key rehearsal/blob").strip().splitlines()[0]

    def everywhere():
        return all(list(host.kept("blobs").glob(f"{cid}*")) for host in lane.hosts)
    until("each node has a copy", everywhere)
    for host in lane.hosts:
        with host.kept(f"blobs/{cid}").open("r+b") as copy:
            copy.seek(100_000)
            copy.write(b"damaged")
    until("it is not given out any more", lambda: lane.ask(first, "GET", f"/v1/blobs/{cid}")[0] == 500)
    page.run(first, "journalctl --unit samovar --grep", says=f"the blob {cid} is damaged")
    page.run(first, "ls -l /var/lib/samovar/blobs/", says=f"{cid}.damaged")
    page.run(first, "curl --cacert", says=cid)
    for host in lane.hosts:
        until(f"{host.name} gives it out again", lambda host=host: lane.ask(host, "GET", f"/v1/blobs/{cid}")[0] == 200)
    first.do("rm blob")


def clock(page: Page, lane: Cluster) -> None:
    """A node alone, in a virtual machine, comes up with its clock a year ahead while its source of time is not reached."""
    guest, source = lane.guest, lane.time
    if not guest:
        raise NotRun(lane.no_guest)
    guest.up()
    guest.init()
    until("its clock is synchronised", lambda: guest.do("timedatectl show --property NTPSynchronized --value").strip() == "yes")
    guest.well("clock", "daemon")
    guest.do("samovar put before - --type text/plain", "kept")
    source.answers = False
    year = int(guest.do("date +%Y"))
    # As it is after a start.
    guest.do("systemctl stop samovar systemd-timesyncd; rm -f /run/systemd/timesync/synchronized; date --set '+400 days'; "
             "systemctl start systemd-timesyncd samovar")  # fmt: skip
    until("the clock is not believed", lambda: guest.doctor()["clock"]["answer"] == "no")
    guest.do("samovar put meanwhile - --type text/plain", "taken")
    page.run(guest, "timedatectl status", says="System clock synchronized: no")
    page.run(guest, "timedatectl timesync-status", says=r"10\.0\.2\.2")
    page.run(guest, "journalctl --unit systemd-timesyncd --since -1h", says=r"10\.0\.2\.2")
    source.answers = True
    page.run(guest, "systemctl restart systemd-timesyncd")
    until("the clock is right", lambda: int(guest.do("date +%Y")) == year)
    guest.well("clock", "certificate", "daemon", "ledger")
    for key, value in (("before", "kept"), ("meanwhile", "taken")):
        if (found := guest.do(f"samovar get {key}").strip()) != value:
            raise Wrong(f"{key} is {found} now")
    guest.do("samovar put after - --type text/plain", "taken")


ALL = {
    "cluster": cluster,
    "down": down,
    "corruption": corruption,
    "quorum": quorum,
    "certificate": certificate,
    "storage": storage,
    "errors": errors,
    "lag": lag,
    "latency": latency,
    "cpu": cpu,
    "memory": memory,
    "saturation": saturation,
    "traffic": traffic,
    "checkpoint": checkpoint,
    "journal": journal,
    "blobs": blobs,
    "clock": clock,
}
