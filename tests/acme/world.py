"""What the ACME lane runs: an authority (pebble) with its DNS (challtestsrv), daemons, and clients that verify them.

Everything listens on loopback of a network namespace that `tests/acme/run` made.
"""

import http.client
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

BINARY = os.environ["SAMOVAR_BIN"]
# Life of the certificates, in seconds. Two thirds of it are a renewal a minute after the issue, which is the least rest
# that the daemon keeps between two orders.
LIFE_S = 90
API_PORT = 8443
# Whom the daemons run as: nobody, with no capability.
NOBODY = 65534


def until(what, seconds, condition):
    """Waits until a condition holds and returns its value; what was expected is said if it does not come."""
    end = time.monotonic() + seconds
    value = None
    while time.monotonic() < end:
        try:
            value = condition()
        except (OSError, KeyError, http.client.HTTPException) as error:
            value = None
            last = error
        else:
            last = None
        if value:
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what} was expected within {seconds} s{f'; last: {last}' if last else ''}")


class Authority:
    """pebble, its DNS, and roots to trust."""

    def __init__(self, work):
        self.work = work
        self.processes = []
        self._make_certificate()
        config = {
            "pebble": {
                "listenAddress": "127.0.0.1:14000",
                "managementListenAddress": "127.0.0.1:15000",
                "certificate": str(work / "pebble.pem"),
                "privateKey": str(work / "pebble.key"),
                "httpPort": 80,
                "tlsPort": 443,
                "ocspResponderURL": "",
                "externalAccountBindingRequired": False,
                "certificateValidityPeriod": LIFE_S,
            }
        }
        (work / "pebble.json").write_text(json.dumps(config))
        self._start("dns", "pebble-challtestsrv", "-defaultIPv6", "", "-defaultIPv4", "127.0.0.9", "-dns01",
                    "127.0.0.1:8053", "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:8055")
        self.pebble = None
        self.start_pebble()

    def start_pebble(self):
        """Bad nonces stay at pebble's five in a hundred. Orders prove their names anew, or none of them could fail: all
        but one in a hundred, which lane.py reckons with (pebble compares with `rand.Intn(100) > 0`)."""
        self.pebble = self._start("pebble", "pebble", "-config", str(self.work / "pebble.json"), "-strict",
                                  "-dnsserver", "127.0.0.1:8053", PEBBLE_VA_NOSLEEP="1", PEBBLE_AUTHZREUSE="0")
        until("the directory", 10, lambda: self.fetch("https://127.0.0.1:14000/dir"))
        (self.work / "issuer.pem").write_bytes(self.fetch("https://127.0.0.1:15000/roots/0"))

    def _make_certificate(self):
        path = self.work
        for words in (
            f"req -x509 -newkey rsa:2048 -nodes -keyout {path}/ca.key -out {path}/roots.pem -subj /CN=directory -days 2",
            f"req -newkey rsa:2048 -nodes -keyout {path}/pebble.key -out {path}/pebble.csr -subj /CN=pebble",
        ):
            subprocess.run(["openssl", *words.split()], check=True, stderr=subprocess.DEVNULL)
        (path / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        words = (f"x509 -req -in {path}/pebble.csr -CA {path}/roots.pem -CAkey {path}/ca.key -CAcreateserial "
                 f"-extfile {path}/names -out {path}/pebble.pem -days 2")
        subprocess.run(["openssl", *words.split()], check=True, stderr=subprocess.DEVNULL)

    def _start(self, name, *words, **variables):
        log = open(self.work / f"{name}.log", "ab")
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **variables})
        self.processes.append(process)
        return process

    def fetch(self, url):
        context = ssl.create_default_context(cafile=str(self.work / "roots.pem"))
        return urllib.request.urlopen(url, context=context, timeout=5).read()

    def point(self, name, address):
        """Says where a name leads."""
        for what, body in (("clear-a", {"host": f"{name}."}), ("add-a", {"host": f"{name}.", "addresses": [address]})):
            body = json.dumps(body).encode()
            urllib.request.urlopen(f"http://127.0.0.1:8055/{what}", data=body, timeout=5).read()

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


class Daemon:
    """A ledger with a daemon whose ports 80 and 443 are passed as systemd passes them."""

    def __init__(self, work, name, address, challenges, more=""):
        self.name, self.address, self.data = name, address, work / name
        self.config = work / f"{name}.toml"
        self.log = work / f"{name}.log"
        self.work, self.process = work, None
        self.write(challenges, more)
        self.data.mkdir()
        os.chown(self.data, NOBODY, NOBODY)
        subprocess.run([BINARY, "init", "--data", self.data, "--name", name.split(".")[0], "--listen", f"{address}:{API_PORT}"], check=True,
                       stdout=subprocess.DEVNULL, user=NOBODY, group=NOBODY, extra_groups=[])
        self.token = (self.data / "admin.token").read_text().strip()

    def write(self, challenges, more=""):
        self.config.write_text(
            f'[listen]\napi = "{self.address}:{API_PORT}"\n[tls]\nsource = "acme"\n'
            f'[acme]\nnames = ["{self.name}"]\ndirectory = "https://localhost:14000/dir"\nterms_agreed = true\n'
            f'contacts = ["ops@example.org"]\nchallenges = {json.dumps(challenges)}\nroots = "{self.work}/roots.pem"\n{more}')

    def start(self):
        sockets = []
        for port in (80, 443):
            listening = socket.create_server((self.address, port))
            sockets.append(listening)
        # Numbers 3 and 4, as sd_listen_fds(3) has them, made by the shell, so that none of ours is in the way.
        first, second = (listening.fileno() for listening in sockets)
        script = (f'exec 8<&{first} 9<&{second}; exec 3<&8 4<&9 8<&- 9<&-; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=acme:acme '
                  'exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"')
        words = ["bash", "-c", script, "daemon", BINARY, "serve", "--config", str(self.config), "--data", str(self.data)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, pass_fds=[first, second])
        for listening in sockets:
            listening.close()
        until(f"{self.name}: ready", 30, lambda: self.get("/ready")[0] == 200)
        return self

    def stop(self):
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, f"{self.name}: the daemon did not end well"
        self.process = None

    def reload(self):
        self.process.send_signal(signal.SIGHUP)

    def command(self, *words):
        run = subprocess.run([BINARY, *words, "--data", self.data, "--output", "json"], capture_output=True, text=True)
        assert run.returncode == 0, f"samovar {' '.join(words)}: {run.stderr}"
        return json.loads(run.stdout)

    def capabilities(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return {line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith("Cap")}

    def connect(self, ca, name, alpn=("http/1.1",), port=API_PORT):
        """A verified TLS connection."""
        context = ssl.create_default_context(cafile=str(ca))
        context.set_alpn_protocols(list(alpn))
        return context.wrap_socket(socket.create_connection((self.address, port), timeout=10), server_hostname=name)

    def get(self, path, ca=None, name="localhost", token=None):
        """A request on a connection of its own, by a client that verifies."""
        with self.connect(ca or self.data / "ca.pem", name) as tls:
            connection = http.client.HTTPConnection(name)
            connection.sock = tls
            connection.request("GET", path, headers={"Authorization": f"Bearer {token or self.token}"})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def status(self):
        return json.loads(self.get("/v1/status")[1])

    def site(self):
        return self.status()["tls"]["site"]

    def metric(self, name):
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"{self.name}: no metric {name}")

    def issuer(self):
        return self.work / "issuer.pem"

    def certificate(self, name=None):
        """What a client is shown, whoever signed it (DER)."""
        context = ssl._create_unverified_context()
        raw = socket.create_connection((self.address, API_PORT), timeout=10)
        with context.wrap_socket(raw, server_hostname=name or self.name) as tls:
            return tls.getpeercert(binary_form=True)

    def entries(self):
        """Entries of the log about the site's certificate."""
        size = self.status()["size"]
        texts = (self.get(f"/v1/transactions/{n}")[1].decode() for n in range(size))
        return [text for text in texts if "~tls/site" in text]


class Load:
    """Clients that ask at a steady pace, each time on a new connection, and verify what they are shown."""

    def __init__(self, daemon, pace_s=0.1):
        self.daemon, self.pace_s = daemon, pace_s
        self.asked, self.failures, self.stopping = 0, [], threading.Event()
        self.threads = []

    def add(self, who, ca, name):
        thread = threading.Thread(target=self._ask, args=(who, ca, name), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _ask(self, who, ca, name):
        while not self.stopping.wait(self.pace_s):
            self.asked += 1
            try:
                status, _ = self.daemon.get("/v1/keys", ca, name)
                if status != 200:
                    self.failures.append(f"{who}: status {status}")
            except Exception as error:  # noqa: BLE001: whatever a client sees is a failed request
                self.failures.append(f"{who}: {error!r}")

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        return self.asked, self.failures
