"""Processes, daemons and HTTP for the monitoring lane."""

import http.client
import http.server
import json
import os
import pathlib
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

BINARY = os.environ["SAMOVAR_BIN"]


def free_port(address="127.0.0.1"):
    with socket.socket() as s:
        s.bind((address, 0))
        return s.getsockname()[1]


def get(url, raw=False, **query):
    """JSON (or text) from a URL; nothing if nobody answers."""
    if query:
        url += "?" + urllib.parse.urlencode(query)
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    except OSError:
        return None
    return text if raw else json.loads(text)


def until(what, seconds, holds):
    """Waits until something holds; that it does not in time is a failure."""
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        if holds():
            print(f"  {what}: after {time.monotonic() - begun:.1f} s", flush=True)
            return
        time.sleep(0.3)
    raise TimeoutError(f"not within {seconds} s: {what}")


class Processes:
    """What the lane started, ended with it; mounts too."""

    def __init__(self, work):
        self.work, self.running, self.last = work, {}, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in list(self.running):
            self.stop(process)
        for undo in reversed(self.last):
            undo()

    def start(self, name, words):
        with open(self.work / f"{name}.log", "ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.running[process] = name
        return process

    def stop(self, process, kill=False):
        self.running.pop(process)
        process.kill() if kill else process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def check(self, words, **more):
        done = subprocess.run(words, capture_output=True, text=True, **more)
        if done.returncode:
            raise ValueError(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def finally_run(self, undo):
        self.last.append(undo)

    def tell(self):
        for log in sorted(self.work.glob("*.log")):
            print(f"== {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n", file=sys.stderr)


class Daemon:
    """A samovar daemon on a loopback address of its own, which Prometheus takes for a machine."""

    def __init__(self, processes, directory, name, host, toml):
        self.processes, self.name, self.host = processes, name, host
        self.port = free_port(host)
        self.address = f"{host}:{self.port}"
        self.data, self.config = directory / name, processes.work / f"{name}.toml"
        processes.check([BINARY, "init", "--data", str(self.data), "--name", name, "--listen", self.address])
        self.config.write_text(f'[listen]\napi = "{self.address}"\n{toml}')
        self.ca = self.data / "ca.pem"
        self.token = (self.data / "admin.token").read_text().strip()
        self.process = None

    def start(self):
        self.process = self.processes.start(
            self.name, [BINARY, "serve", "--config", str(self.config), "--data", str(self.data)])
        until(f"{self.name} is ready", 30, lambda: self.ask("GET", "/ready")[0] == 200)

    def stop(self):
        self.processes.stop(self.process)

    def kill(self):
        self.processes.stop(self.process, kill=True)

    def connect(self, timeout=60):
        context = ssl.create_default_context(cafile=str(self.ca))
        return http.client.HTTPSConnection(self.host, self.port, context=context, timeout=timeout)

    def ask(self, method, path, body=None, connection=None):
        """Status and body; 0 if nobody answers."""
        connection = connection or self.connect()
        try:
            headers = {"Authorization": f"Bearer {self.token}"} | ({"Content-Type": "application/json"} if body else {})
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except OSError as error:
            return 0, str(error)

    def metrics(self):
        return self.ask("GET", "/metrics")[1]

    def reader_token(self):
        path = self.processes.work / f"{self.name}.reader"
        self.processes.check([BINARY, "api-key", "create", "--name", "prometheus", "--role", "reader",
                              "--save", str(path), "--data", str(self.data)])
        return path.read_text().strip()


class Receiver(http.server.ThreadingHTTPServer):
    """Takes every notification and remembers it."""

    def __init__(self):
        self.got, self.lock = [], threading.Lock()
        super().__init__(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def at(self, path):
        with self.lock:
            return [n for n in self.got if n["path"].startswith(path)]


class Take(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            self.server.got.append({"path": self.path, "authorization": self.headers["Authorization"],
                                    "body": json.loads(body)})
        # PagerDuty answers 202, the others 200.
        self.send_response(202 if self.path.startswith("/pagerduty") else 200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}" if "pagerduty" in self.path else b"ok")

    def log_message(self, *_):
        pass
