"""A virtual machine that boots a disk image, and the network it is seen over.

QEMU runs without hardware support: slow, and the same everywhere. Assert states, not times.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

HOST = "192.168.83.1"
GUEST = "192.168.83.2"
FIRMWARE = Path("/usr/share/OVMF")
# Seconds for anything that a machine is waited for; generous, since the host may be busy.
PATIENCE_S = 600


def network() -> None:
    """One wire between this process's namespace and the machine."""
    for command in (
        "ip link set lo up",
        "ip tuntap add dev tap0 mode tap",
        f"ip address add {HOST}/24 dev tap0",
        "ip link set tap0 up",
    ):
        subprocess.run(command.split(), check=True)


class Machine:
    """One machine: its disk, its firmware's variables and its TPM outlive a power cut."""

    def __init__(self, work: Path, name: str, disk: Path, *, bios: bool = False, tpm: bool = True, memory_mib: int = 1024):
        self.work, self.name, self.disk, self.bios, self.tpm, self.memory_mib = work, name, disk, bios, tpm, memory_mib
        self.serial = work / f"{name}.serial"
        # USB sticks that are in, and whether there is a controller for them in any case.
        self.sticks: list[Path] = []
        self.usb = False
        self.credentials: dict[str, Path] = {}
        # The generation id that the hypervisor gives the machine.
        self.generation = ""
        self.qemu: subprocess.Popen | None = None
        self.swtpm: subprocess.Popen | None = None
        self.seen = 0
        self.wired = True
        # Socket of whoever serves the disk over NBD instead of the file itself.
        self.nbd: Path | None = None
        self.key = work / "ops"

    def start(self) -> None:
        self.serial.write_text("")
        self.seen = 0
        command = [
            "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "1",
            "-m", str(self.memory_mib), "-nodefaults", "-no-user-config", "-display", "none", "-vga", "std",
            "-serial", f"file:{self.serial}",
            "-drive", f"if=none,id=disk,file={f'nbd+unix:///?socket={self.nbd}' if self.nbd else self.disk},format=raw,cache=writeback,discard=unmap",
            "-device", "virtio-blk-pci,drive=disk,bootindex=0", "-device", "virtio-rng-pci",
            "-device", "i6300esb", "-action", "watchdog=reset",
        ]  # fmt: skip
        if self.wired:
            command += ["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net"]
        if not self.bios:
            variables = self.work / f"{self.name}.vars"
            if not variables.exists():
                shutil.copy(FIRMWARE / "OVMF_VARS_4M.fd", variables)
            command += ["-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd",
                        "-drive", f"if=pflash,format=raw,file={variables}"]  # fmt: skip
        if self.sticks or self.usb:
            command += ["-device", "qemu-xhci"]
        for number, stick in enumerate(self.sticks):
            command += ["-drive", f"if=none,id=stick{number},file={stick},format=raw",
                        "-device", f"usb-storage,drive=stick{number},removable=on"]  # fmt: skip
        for name, file in self.credentials.items():
            encoded = subprocess.run(["base64", "-w0", file], check=True, capture_output=True, text=True).stdout
            command += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={encoded}"]
        if self.generation:
            command += ["-device", f"vmgenid,guid={self.generation}"]
        if self.tpm:
            command += self.start_tpm()
        with (self.work / f"{self.name}.qemu").open("w") as log:
            self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def start_tpm(self) -> list[str]:
        state, socket = self.work / f"{self.name}.tpm", self.work / f"{self.name}.tpm.socket"
        state.mkdir(exist_ok=True)
        socket.unlink(missing_ok=True)
        self.swtpm = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not socket.exists():
            time.sleep(0.05)
        return ["-chardev", f"socket,id=tpm,path={socket}", "-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"]

    def cut(self) -> None:
        """Takes the power away."""
        for process in (self.qemu, self.swtpm):
            if process:
                process.kill()
                process.wait()
        self.qemu = self.swtpm = None

    def stop(self) -> None:
        """Shuts down as an operator would; cuts the power if that fails."""
        if self.qemu:
            self.ssh("systemctl poweroff", check=False)
            try:
                self.qemu.wait(120)
            except subprocess.TimeoutExpired:
                pass
        self.cut()

    def text(self) -> str:
        return self.serial.read_text(errors="replace")

    def console(self, pattern: str, patience_s: float = PATIENCE_S) -> str:
        """Waits for a text on the serial line, after the one that was waited for last."""
        end = time.monotonic() + patience_s
        while True:
            found = re.compile(pattern).search(self.text(), self.seen)
            if found:
                self.seen = found.end()
                return found.group(0)
            self.alive(end, f"`{pattern}` on its serial line")
            time.sleep(0.3)

    def alive(self, end: float, what: str) -> None:
        if self.qemu is None or self.qemu.poll() is not None:
            raise RuntimeError(f"{self.name}: QEMU ended: {(self.work / f'{self.name}.qemu').read_text()[-800:]}")
        if time.monotonic() > end:
            raise TimeoutError(f"{self.name}: waited for {what} in vain. Its serial line ends with:\n{self.text()[-2500:]}")

    def ssh(self, command: str, check: bool = True, patience_s: float = 120) -> str:
        """Runs a command in the machine, as root."""
        result = subprocess.run([*self.shell(), command], capture_output=True, text=True, timeout=patience_s, check=False)
        if check and result.returncode:
            raise RuntimeError(f"{self.name}: `{command}` ended with {result.returncode}: {result.stdout}{result.stderr}")
        return result.stdout.strip()

    def restart(self, command: str = "systemctl reboot") -> None:
        """Runs a command that starts the machine anew: what is waited for on its serial line next comes after it. (GRUB says each line
        twice there by UEFI, so that the second of the boot before would do.)"""
        self.seen = len(self.text())
        self.ssh(command, check=False)

    def send(self, file: Path, place: str) -> None:
        """Copies a file into the machine."""
        with file.open("rb") as content:
            subprocess.run([*self.shell(), f"cat > {place}"], stdin=content, check=True, timeout=PATIENCE_S)

    def shell(self) -> list[str]:
        return ["ssh", "-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
                "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6", "-o", "BatchMode=yes", f"root@{GUEST}"]  # fmt: skip

    def reachable(self, patience_s: float = PATIENCE_S) -> None:
        """Waits for ssh."""
        end = time.monotonic() + patience_s
        while True:
            try:
                if self.ssh("echo here", check=False, patience_s=40) == "here":
                    return
            except subprocess.TimeoutExpired:
                pass
            self.alive(end, "ssh")
            time.sleep(1)
