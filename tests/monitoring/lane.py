"""The live part of the monitoring lane; tests/monitoring/run calls it.

Three daemons on addresses of their own (127.0.0.1 to 3): `main` works, `second` belongs to the same ledger's targets and
lags behind until it is killed, `small` lies on a small file system and is brought into trouble. Prometheus and
Alertmanager run with the role's own files; only ports, receivers and intervals are replaced (see `Site`). Checked is:

  queries     every query of every dashboard and every recording rule returns data
  alerts      each alert that `PROVOKED` lists is pending or firing because its state was made; of every other one the
              measured side, left of the last comparison, returns data
  names       every metric that a rule or dashboard names is in a live scrape
  delivery    the death of a node goes to webhook, Slack and PagerDuty, once, with a runbook that can be read
"""

import json
import math
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

from processes import Daemon, Processes, Receiver, free_port, get, until
from provoke import Provoke

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ROOT / "ansible/roles/monitoring/files"
RUNBOOKS = ROOT / "docs/operate/runbooks"
# What the lane writes into copies of the shipped files: shorter intervals, nothing else that a rule could notice.
INTERVALS = {"scrape_interval: 5s": "scrape_interval: 1s", "scrape_interval: 15s": "scrape_interval: 1s",
             "evaluation_interval: 15s": "evaluation_interval: 2s", "scrape_timeout: 4s": "scrape_timeout: 1s"}
WEBHOOK_TOKEN = "lane-webhook-token"
# Alerts whose state is made here, and how.
PROVOKED = {
    "SamovarLatencyHigh": "a write waits on a frozen file system",
    "SamovarLatencyCritical": "a write waits on a frozen file system",
    "SamovarErrorsHigh": "writes find no room",
    "SamovarErrorsCritical": "writes find no room",
    "SamovarErrorBudgetFast": "writes find no room",
    "SamovarErrorBudgetSlow": "writes find no room",
    "SamovarTrafficHigh": "a load of reads",
    "SamovarStorageDown": "the file system is frozen for longer than 10 seconds",
    "SamovarWritesWaiting": "writes wait on a frozen file system",
    "SamovarNoRoom": "the file system is filled beyond the reserve",
    "SamovarDiskLow": "the file system is filled",
    "SamovarDiskFilling": "the file system is filled",
    "SamovarConnectionsNearLimit": "connections are held open",
    "SamovarCertificateExpiring": "a certificate of three days",
    "SamovarCertificateExpiringSoon": "a certificate of three days",
    "SamovarRestarting": "four starts",
    "SamovarLeaderUnstable": "four starts",
    "SamovarNodeTrails": "a node has fewer blocks than another one of its ledger",
    "SamovarNodeExporterDown": "node-exporter is stopped",
    "SamovarStrangeStick": "node-exporter reads what a box writes of a strange stick",
    "SamovarDown": "a daemon is killed",
    "SamovarTargetsMissing": "the list of targets is emptied",
    "SamovarWatchdog": "always",
}
# What only a node with peers reports; `nodes_are_in_the_metrics_of_their_peers` in tests/system/cluster.rs sees it live.
AMONG_PEERS = {"samovar_peer_live": "SamovarPeerDown"}
NAME = re.compile(r"\b(?:http|samovar|process|node|up)(?:_[a-z0-9_]+)?\b(?![:(=~!])")
RECORDED = re.compile(r"\b(?:node|ledger):[a-z0-9_:]+")


class Failures(list):
    """What was found wrong; printed as it is found."""

    def add(self, text):
        print("FAILED:", text, flush=True)
        self.append(text)


class Site:
    """Prometheus and Alertmanager over copies of the role's files."""

    def __init__(self, work, processes, receiver):
        self.work, self.processes = work, processes
        self.etc = work / "etc"
        self.port, self.am_port, self.exporter_port = free_port(), free_port(), free_port()
        self.url, self.am_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.am_port}"
        for part in ("rules", "alertmanager-templates"):
            shutil.copytree(FILES / part, self.etc / part)
        shutil.copytree(RUNBOOKS, self.etc / "consoles/samovar")
        for part in ("targets", "secrets"):
            (self.etc / part).mkdir()
        ports = {"localhost:9093": f"127.0.0.1:{self.am_port}", "localhost:9090": f"127.0.0.1:{self.port}"}
        self.copy("prometheus.yml", INTERVALS | ports)
        # Slack by its file of secrets; PagerDuty has one address for all, which is set here. Mail goes nowhere.
        self.copy("alertmanager.yml", {
            "http://localhost:9099": receiver.url, "/etc/prometheus": str(self.etc),
            "global:\n": f"global:\n  pagerduty_url: {receiver.url}/pagerduty\n",
            "localhost:587": f"127.0.0.1:{free_port()}",
        })
        for name, text in {"slack-url": f"{receiver.url}/slack", "pagerduty-key": "lane-key",
                           "smtp-password": "none", "webhook-token": WEBHOOK_TOKEN}.items():
            (self.etc / f"secrets/alertmanager-{name}").write_text(text)

    def copy(self, name, replaced):
        text = (FILES / name).read_text()
        for old, new in replaced.items():
            if old not in text:
                sys.exit(f"{name} no longer holds {old!r}: the lane cannot adapt it")
            text = text.replace(old, new)
        (self.etc / name).write_text(text)

    def start(self, daemons, ledgers):
        """`ledgers`: name → addresses of its daemons. node-exporter stands for the machine of the first one."""
        (self.etc / "secrets/samovar-ca.pem").write_text("".join(d.ca.read_text() for d in daemons))
        (self.etc / "secrets/samovar-token").write_text(daemons[0].reader_token())
        self.targets(ledgers)
        exporter = {"targets": [f"127.0.0.1:{self.exporter_port}"], "labels": {"ledger": "main"}}
        (self.etc / "targets/node.yml").write_text(json.dumps([exporter]))
        self.processes.check(["promtool", "check", "config", str(self.etc / "prometheus.yml")])
        self.processes.check(["amtool", "check-config", str(self.etc / "alertmanager.yml")])
        textfiles = self.work / "textfiles"
        textfiles.mkdir()
        (textfiles / "samovar-stick.prom").write_text("samovar_box_strange_stick 1\n")
        self.exporter = self.processes.start("node-exporter", [
            "prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{self.exporter_port}",
            f"--collector.textfile.directory={textfiles}"])
        self.processes.start("alertmanager", [
            "prometheus-alertmanager", f"--config.file={self.etc}/alertmanager.yml", "--cluster.listen-address=",
            f"--storage.path={self.work}/am", f"--web.listen-address=127.0.0.1:{self.am_port}"])
        self.processes.start("prometheus", [
            "prometheus", f"--config.file={self.etc}/prometheus.yml", f"--storage.tsdb.path={self.work}/tsdb",
            f"--web.listen-address=127.0.0.1:{self.port}", f"--web.external-url={self.url}/",
            f"--web.console.templates={self.etc}/consoles", "--storage.tsdb.retention.time=200h"])
        until("Prometheus is ready", 30, lambda: "is Ready" in (get(f"{self.url}/-/ready", raw=True) or ""))
        until("Prometheus scrapes every daemon", 30, lambda: len(self.query('up{job="samovar"} == 1')) == len(daemons))

    def targets(self, ledgers):
        groups = [{"targets": addresses, "labels": {"ledger": name}} for name, addresses in ledgers.items()]
        (self.etc / "targets/samovar.yml").write_text(json.dumps(groups))

    def query(self, expr):
        """Samples of an instant query, those that are no number left out."""
        answer = get(f"{self.url}/api/v1/query", query=expr)
        if answer is None or answer["status"] != "success":
            raise ValueError(f"{expr}: {answer}")
        data = answer["data"]
        samples = [data["result"]] if data["resultType"] == "scalar" else [s["value"] for s in data["result"]]
        return [s for s in samples if not math.isnan(float(s[1]))]

    def rules(self):
        groups = get(f"{self.url}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self):
        """Alerts that are pending or firing: name → labels of each."""
        found = {}
        for alert in get(f"{self.url}/api/v1/alerts")["data"]["alerts"]:
            found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"] | {"state": alert["state"]})
        return found


def dashboard_queries():
    """(where, query) of every panel and variable, with Grafana's variables filled in as "All"."""
    for path in sorted((FILES / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        if board["refresh"] != "30s":
            sys.exit(f"{path.name}: refresh is {board['refresh']}, not 30s")
        for panel in board["panels"]:
            for target in panel["targets"]:
                expr = target["expr"].replace("$__rate_interval", "1m")
                yield f"{path.name}: {panel['title']}", re.sub(r"\$(node|ledger)\b", ".*", expr)
        for link in re.findall(r"\$\{runbooks\}/([\w.-]+)", path.read_text()):
            if not (RUNBOOKS / link).is_file():
                sys.exit(f"{path.name} links to {link}, which is not in docs/operate/runbooks")


def check_queries(site, rules, failures):
    queries = list(dashboard_queries())
    queries += [(f"rule {r['name']}", r["name"]) for r in rules if r["type"] == "recording"]
    for where, expr in queries:
        if not site.query(expr):
            failures.add(f"{where}: no data from {expr}")
    print(f"{len(queries)} queries of dashboards and recording rules returned data or are named above")
    return [expr for _, expr in queries]


def check_measured(site, rules, failures):
    """What an alert compares, left of its last comparison, returns data: its metrics exist and its labels match."""
    for rule in (r for r in rules if r["type"] == "alerting" and r["name"] not in PROVOKED):
        if rule["name"] in AMONG_PEERS.values():
            continue
        measured, found = re.subn(r"\s(?:<|>|>=|<=|==)\s[^<>=]+$", "", rule["query"])
        if not found or not site.query(measured.rsplit(" and ", 1)[-1]):
            failures.add(f"{rule['name']}: no data from {measured}")


def check_alerts(rules, seen, failures):
    """Says of each alert how far it was seen; what was provoked must have been."""
    names = {r["name"] for r in rules if r["type"] == "alerting"}
    for gone in PROVOKED.keys() - names:
        failures.add(f"PROVOKED lists {gone}, which is no rule")
    for rule in (r for r in rules if r["type"] == "alerting"):
        name, page = rule["name"], RUNBOOKS / rule["annotations"]["runbook_url"].rsplit("/", 1)[1]
        if name in PROVOKED and name not in seen:
            failures.add(f"{name} did not become pending, though {PROVOKED[name]}: {rule['query']}")
        elsewhere = "not provoked; its metric is seen in tests/system" if name in AMONG_PEERS.values() else None
        how = PROVOKED.get(name) or elsewhere or ("by chance" if name in seen else "not provoked; what it measures returned data")
        print(f"  {name:32} {'seen' if name in seen else 'not seen'}: {how}")
        if not page.is_file() or name not in page.read_text():
            failures.add(f"{name}: there is no runbook {page.name} that names it")


def check_tested(rules, failures):
    """Each alert has unit tests in which it fires and in which it is silent."""
    tests = "".join(p.read_text() for p in (FILES / "rules-tests").glob("*.yml"))
    for name in {r["name"] for r in rules if r["type"] == "alerting"} - {"SamovarWatchdog"}:
        cases = re.findall(rf'alertname="{name}".*\n\s+eval_time: .*\n\s+exp_samples: \[(.*)\]', tests)
        if "" not in cases or not any(cases):
            failures.add(f"{name} is not seen to fire and to stay silent in {FILES.name}/rules-tests")


def check_names(site, exprs, scraped, failures):
    exprs = exprs + [r["query"] for r in site.rules()]
    bare = [RECORDED.sub("", re.sub(r'"[^"]*"|\b(?:by|on|le|group_right)\b\s*\([^)]*\)|\{[^}]*\}', "", e)) for e in exprs]
    used = {name for e in bare for name in NAME.findall(e)} - {"node"} - AMONG_PEERS.keys()
    for name in sorted(used):
        if name != "up" and f"\n{name}" not in scraped:
            failures.add(f"no live scrape holds {name}")
    print(f"{len(used)} metric names are used, each is in a live scrape or named above")


def check_delivery(site, receiver, victim, failures):
    def down(path):
        return [n for n in receiver.at(path) if "SamovarDown" in json.dumps(n["body"])]

    # 30 s until the alert fires, then at most 15 s of group_interval.
    for path in ("/pagerduty", "/slack", "/alerts"):
        until(f"the death of a node is told to {path}", 75, lambda: down(path))
    webhook = down("/alerts")[0]
    if webhook["authorization"] != f"Bearer {WEBHOOK_TOKEN}":
        failures.add(f"the webhook got {webhook['authorization']!r} instead of the token from its file")
    alert = next(a for a in webhook["body"]["alerts"] if a["labels"]["alertname"] == "SamovarDown")
    if alert["labels"].get("node") != victim:
        failures.add(f"the alert is about {alert['labels']}, not about {victim}")
    text = get(alert["annotations"]["runbook_url"], raw=True) or ""
    if text != (RUNBOOKS / "down.md").read_text():
        failures.add(f"{alert['annotations']['runbook_url']} does not serve the runbook: {text[:80]!r}")
    # One page, and everything else that is said about the dead node is held back because of it.
    pages = {n["body"]["dedup_key"] for n in receiver.at("/pagerduty") if victim in json.dumps(n["body"])}
    if len(pages) != 1:
        failures.add(f"one dead node made {len(pages)} pages: {pages}")
    about = [a for a in get(f"{site.am_url}/api/v2/alerts") if a["labels"].get("node") == victim]
    others = [a for a in about if a["labels"]["alertname"] != "SamovarDown"]
    loud = [a["labels"]["alertname"] for a in others if not a["status"]["inhibitedBy"]]
    if not others or loud:
        failures.add(f"of {len(others)} other alerts of the dead node these are not inhibited: {loud}")
    print(f"delivered to webhook, Slack and PagerDuty; {len(others)} other alerts of {victim} are held back")
    if not receiver.at("/heartbeat"):
        failures.add("the watchdog was not delivered")


def lane(work, processes, failures):
    begun = time.monotonic()
    receiver = Receiver()
    site = Site(work, processes, receiver)
    provoke = Provoke(work, processes)
    main = Daemon(processes, work, "main", "127.0.0.1", "[metrics]\nallow = []\n")
    second = Daemon(processes, work, "second", "127.0.0.2", "")
    small = Daemon(processes, provoke.small_file_system(), "small", "127.0.0.3",
                   '[store]\nreserve = "48MiB"\nqueue = 8\n[limits]\nconnections = 40\n')
    provoke.short_certificate(small)
    daemons = [main, second, small]
    for daemon in daemons:
        daemon.start()
    site.start(daemons, {"main": [main.address, second.address], "small": [small.address]})
    seen = {}

    def look():
        for name, labels in site.alerts().items():
            seen.setdefault(name, []).extend(labels)
        return seen

    load = provoke.load(main)
    load.heavy(lambda: "SamovarTrafficHigh" in look())
    provoke.restarts(second, 4)
    provoke.hold_connections(small, 37, lambda: "SamovarConnectionsNearLimit" in look())
    provoke.frozen(small, lambda: {"SamovarStorageDown", "SamovarWritesWaiting"} <= look().keys())
    provoke.filled(small, lambda: {"SamovarNoRoom", "SamovarErrorsCritical"} <= look().keys())
    until("alerts of slow and failed requests", 30, lambda: {
        "SamovarLatencyCritical", "SamovarErrorBudgetFast", "SamovarDiskLow"} <= look().keys())
    until("alerts about the restarts", 20, lambda: {"SamovarRestarting", "SamovarLeaderUnstable"} <= look().keys())
    load.finish()
    rules = site.rules()
    for rule in rules:
        if rule["health"] != "ok":
            failures.add(f"{rule['name']} cannot be evaluated: {rule.get('lastError')}")
    scraped = "\n" + main.metrics() + (get(f"http://127.0.0.1:{site.exporter_port}/metrics", raw=True) or "")
    exprs = check_queries(site, rules, failures)
    check_names(site, exprs, scraped, failures)
    check_measured(site, rules, failures)
    check_tested(rules, failures)
    until("a node that trails is seen", 90, lambda: "SamovarNodeTrails" in look())

    left = provoke.fresh_certificate(small)
    if left < 360 * 86400:
        failures.add(f"after what certificate.md says to do the certificate ends in {left / 86400:.0f} days")
    second.kill()
    processes.stop(site.exporter)
    until("a dead node and a dead exporter are seen", 20,
          lambda: {"SamovarDown", "SamovarNodeExporterDown"} <= look().keys())
    check_delivery(site, receiver, "127.0.0.2", failures)
    look()
    site.targets({})
    until("missing targets are seen", 30, lambda: "SamovarTargetsMissing" in look())
    check_alerts(rules, seen, failures)
    print(f"{time.monotonic() - begun:.0f} s")


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failures = Failures()
    work = pathlib.Path(tempfile.mkdtemp(prefix="samovar-monitoring.", dir=os.environ.get("TMPDIR", "/var/tmp")))
    with Processes(work) as processes:
        try:
            lane(work, processes, failures)
        except (TimeoutError, ValueError, OSError) as error:
            failures.add(f"{error}")
            processes.tell()
    shutil.rmtree(work)
    if failures:
        sys.exit(f"{len(failures)} failures; tests/monitoring/run repeats the lane")


main()
