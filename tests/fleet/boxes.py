"""Boxes without a disk: each is a real slot of the image, started by systemd-nspawn on a bridge, restarted by itself into the slot
that GRUB's environment names, as image/grub.cfg does it. What a disk and firmware would do is in `layer/`.
"""

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NETWORK = "10.77.0"
HOST = f"{NETWORK}.1"
CGROUPS = Path("/sys/fs/cgroup")
# nspawn's exit code when the machine asked to be started again.
AGAIN = 133
PATIENCE_S = 300
MASKED = ("systemd-repart.service", "samovar-unlock.service", "samovar-console.service")


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def fabric() -> None:
    """A bridge in this process's network namespace, and cgroup2 alone in its mount namespace, as nspawn needs it."""
    for command in (
        "ip link set lo up",
        "ip link add br0 type bridge forward_delay 0",
        f"ip address add {HOST}/24 dev br0",
        "ip link set br0 up",
        "umount -R -l /sys/fs/cgroup",
        "mount -t sysfs sysfs /sys",
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    ):
        run(*command.split())


class Box:
    """One box: /var, the ESP's files and its slots outlive a restart."""

    def __init__(self, work: Path, number: int, slot: Path, key: Path):
        self.name, self.address = f"box-0{number}", f"{NETWORK}.1{number}"
        self.place, self.key = work / self.name, key
        self.efi, self.slots, self.var = (self.place / name for name in ("efi", "slots", "var"))
        self.group = CGROUPS / f"samovar-fleet-{self.name}"
        self.log = self.place / "console"
        self.boots: list[str] = []
        self.thread: threading.Thread | None = None
        for directory in (self.efi / "EFI/samovar", self.efi / "samovar", self.slots, self.var):
            directory.mkdir(parents=True)
        shutil.copy(slot, self.slots / "A.squashfs")
        self.environment(ORDER="A B", A_OK="1", A_TRY="0", B_OK="0", B_TRY="0", CONFIRMED="A")

    def environment(self, **changes: str) -> dict[str, str]:
        """GRUB's environment, after some changes."""
        file = self.efi / "EFI/samovar/grubenv"
        if not file.exists():
            run("grub-editenv", file, "create")
        if changes:
            run("grub-editenv", file, "set", *(f"{name}={value}" for name, value in changes.items()))
        lines = subprocess.run(["grub-editenv", file, "list"], check=True, capture_output=True, text=True).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def picked(self) -> tuple[str, str]:
        """Slot and try, as image/grub.cfg picks and counts them."""
        found = self.environment()
        for slot in found["ORDER"].split():
            if found[f"{slot}_OK"] == "1" and found[f"{slot}_TRY"] in ("0", "1", "2"):
                count = str(int(found[f"{slot}_TRY"]) + 1)
                self.environment(**{f"{slot}_TRY": count})
                return slot, count
        raise RuntimeError(f"{self.name}: no slot is left to try: {found}")

    def start(self) -> None:
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()

    def live(self) -> None:
        """Runs until the box is switched off."""
        while True:
            slot, count = self.picked()
            self.boots.append(slot)
            (self.slots / "cmdline").write_text(f"root=none ro rauc.slot={slot} samovar.try={count}\n")
            root = self.root(slot)
            # What a run before left, killed: the kernel would kill this box's services in it, too.
            self.clear()
            self.group.mkdir(exist_ok=True)
            command = ["systemd-nspawn", "-q", "-b", "-D", root, "-M", self.name, "--register=no", "--keep-unit", "--network-bridge=br0",
                       "--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--kill-signal=SIGRTMIN+4",
                       f"--bind={self.var}:/var", f"--bind={self.efi}:/efi", f"--bind={self.slots}:/slots"]  # fmt: skip
            words = ["bash", "-c", f'echo $$ > {self.group}/cgroup.procs; exec "$@"', "_", *map(str, command)]
            with self.log.open("a") as log:
                ended = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode
            self.clear()
            subprocess.run(["umount", "-R", root], check=False)
            if ended != AGAIN:
                return

    def clear(self) -> None:
        """Removes the box's control groups; none of its processes is left."""
        subprocess.run(["find", self.group, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"], check=False, stderr=subprocess.DEVNULL)

    def root(self, slot: str) -> Path:
        """The slot, read-only, under the layer and what is new at each start."""
        image = self.slots / f"{slot}.squashfs"
        if (self.slots / f"{slot}.raucb").exists():
            bundle = self.mount(f"bundle-{slot}", self.slots / f"{slot}.raucb")
            image = bundle / "slot.img"
        lower, upper, root = self.mount(f"slot-{slot}", image), self.place / "upper", self.place / "root"
        for directory in (upper, root):
            directory.mkdir(exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", upper)
        for name in ("new", "work"):
            (upper / name).mkdir()
        shutil.copytree(HERE / "layer", upper / "new", dirs_exist_ok=True)
        (upper / "new/slots").mkdir()
        for unit in MASKED:
            (upper / "new/etc/systemd/system" / unit).symlink_to("/dev/null")
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={lower},upperdir={upper}/new,workdir={upper}/work", root)
        return root

    def mount(self, name: str, file: Path) -> Path:
        place = self.place / name
        place.mkdir(exist_ok=True)
        if not place.is_mount():
            run("mount", "-t", "squashfs", "-o", "loop,ro", file, place)
        return place

    def off(self) -> None:
        """Takes the power away: never the machine's supervisor alone, which would leave what it runs."""
        if self.group.exists():
            (self.group / "cgroup.kill").write_text("1")
        if self.thread:
            self.thread.join(60)

    def ssh(self, command: str, *, check: bool = True, patience_s: float = 120) -> str:
        result = subprocess.run(
            ["ssh", "-i", self.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
             "-o", "ConnectTimeout=5", "-o", "BatchMode=yes", f"root@{self.address}", command],
            capture_output=True, text=True, timeout=patience_s, check=False)  # fmt: skip
        if check and result.returncode:
            raise RuntimeError(f"{self.name}: `{command}` ended with {result.returncode}: {result.stdout}{result.stderr}")
        return (result.stdout if check else result.stdout + result.stderr).strip()

    def send(self, file: Path, place: str) -> None:
        """Copies a file into the box."""
        shutil.copy(file, self.var / "sent")
        self.ssh(f"mv /var/sent {place}")

    def reachable(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while self.ssh("echo here", check=False) != "here":
            if time.monotonic() > end:
                raise TimeoutError(f"{self.name} is not reached; its console ends with:\n{self.log.read_text()[-3000:]}")
            time.sleep(1)

    def serves(self) -> None:
        """Waits until the ledger answers linearizable reads."""
        end = time.monotonic() + PATIENCE_S
        ask = "python3 -c \"import http.client as h, socket as s; c = h.HTTPConnection('x'); c.sock = s.socket(s.AF_UNIX); \
c.sock.connect('/var/lib/samovar/samovar.sock'); c.request('GET', '/ready'); print(c.getresponse().status)\""
        while not re.search(r"^200$", self.ssh(ask, check=False), re.MULTILINE):
            if time.monotonic() > end:
                said = self.ssh("journalctl -b -o cat -u samovar -u samovar-init -u samovar-join -u samovar-site | tail -30; cat /run/samovar/problem", check=False)
                raise TimeoutError(f"{self.name} is not ready: {said}")
            time.sleep(1)
