"""Machines of systemd-nspawn on a bridge, in the network and mount namespaces of the process that asks for them."""

import subprocess
import threading
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# nspawn's exit code when the machine asked to be started again.
AGAIN = 133


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def fabric(host: str) -> None:
    """A bridge with this address (/24) in this process's network namespace, and cgroup2 alone in its mount namespace, as nspawn needs it."""
    for command in (
        "ip link set lo up",
        "ip link add br0 type bridge forward_delay 0",
        f"ip address add {host}/24 dev br0",
        "ip link set br0 up",
        "umount -R -l /sys/fs/cgroup",
        "mount -t sysfs sysfs /sys",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    ):
        run(*command.split())


class Machine:
    """One machine, which is started again when it asks for it. Who inherits says what its root is."""

    def __init__(self, name: str, place: Path, group: str):
        self.name, self.place, self.group = name, place, CGROUPS / group
        self.log = place / "console"
        self.thread: threading.Thread | None = None

    def root(self) -> Path:
        """The root directory of the next start, mounted."""
        raise NotImplementedError

    def binds(self) -> dict[Path, str]:
        """What of the outside is where inside."""
        return {}

    def start(self) -> None:
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()

    def live(self) -> None:
        """Runs until the machine is switched off."""
        while True:
            root = self.root()
            # What a run before left, killed: the kernel would kill this machine's services in it, too.
            self.clear()
            self.group.mkdir(exist_ok=True)
            command = ["systemd-nspawn", "-q", "-b", "-D", root, "-M", self.name, "--register=no", "--keep-unit", "--network-bridge=br0",
                       "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--kill-signal=SIGRTMIN+4",
                       *(f"--bind={outside}:{inside}" for outside, inside in self.binds().items())]  # fmt: skip
            words = ["bash", "-c", f'echo $$ > {self.group}/cgroup.procs; exec "$@"', "_", *map(str, command)]
            with self.log.open("a") as log:
                ended = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode
            self.clear()
            subprocess.run(["umount", "-R", root], check=False)
            if ended != AGAIN:
                return

    def clear(self) -> None:
        """Removes the machine's control groups; none of its processes is left."""
        subprocess.run(["find", self.group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], check=False, stderr=subprocess.DEVNULL)

    def off(self) -> None:
        """Takes the power away: never the machine's supervisor alone, which would leave what it runs."""
        if self.group.exists():
            (self.group / "cgroup.kill").write_text("1")
        if self.thread:
            self.thread.join(60)
