"""How the lane says what holds and what does not."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
failed = 0
began = time.monotonic()


def step(text: str) -> None:
    print(f"\n== {text} ({time.monotonic() - began:.0f} s)", flush=True)


def point(text: str, holds: bool, why: object = "") -> None:
    """One line for one point."""
    global failed
    print(f"holds: {text}" if holds else f"FAILS: {text}   [{why}]", flush=True)
    failed += not holds


def result(lane: str = "tests/image") -> int:
    """The last line, and how the lane ends."""
    print(f"\n{lane}: " + ("FAILED" if failed else "every point holds"))
    return int(bool(failed))


def until(true: Callable[[], bool], patience_s: float = 180) -> bool:
    end = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(1)
    return True


def tool(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(c) for c in command], cwd=REPOSITORY, capture_output=True, text=True, check=False)


def fetched(url: str) -> str:
    return subprocess.run(["curl", "-s", "-k", "-m", "30", url], capture_output=True, text=True, check=False).stdout
