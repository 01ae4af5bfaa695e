"""Boxes without a disk: each is a real slot of the image, started by systemd-nspawn on a bridge, restarted by itself into the slot
that GRUB's environment names, as image/grub.cfg does it. What a disk and firmware would do is in `layer/`.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

import nspawn
from nspawn import run

HERE = Path(__file__).resolve().parent
NETWORK = "10.77.0"
HOST = f"{NETWORK}.1"
PATIENCE_S = 300
MASKED = ("systemd-repart.service", "samovar-unlock.service", "samovar-console.service")


class Box(nspawn.Machine):
    """One box: /var, the ESP's files and its slots outlive a restart."""

    def __init__(self, work: Path, number: int, slot: Path, key: Path):
        name = f"box-0{number}"
        super().__init__(name, work / name, f"samovar-fleet-{name}")
        self.address, self.key = f"{NETWORK}.1{number}", key
        self.efi, self.slots, self.var = (self.place / name for name in ("efi", "slots", "var"))
        self.boots: list[str] = []
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

    def binds(self) -> dict[Path, str]:
        return {self.var: "/var", self.efi: "/efi", self.slots: "/slots"}

    def root(self) -> Path:
        slot, count = self.picked()
        self.boots.append(slot)
        (self.slots / "cmdline").write_text(f"root=none ro rauc.slot={slot} samovar.try={count}\n")
        return self.laid_over(slot)

    def laid_over(self, slot: str) -> Path:
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
