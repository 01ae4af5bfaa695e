#!/usr/bin/env python3
"""What ansible/update.yml takes for a failed request. Run alone: tests/fleet/filters.py"""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "ansible/roles/update/filter_plugins"))
from requests import failed_share  # noqa: E402


def metrics(**counts: int) -> str:
    """Of puts by their status; `ready` is what a node that drains answers to probes."""
    lines = ["# TYPE http_requests counter", 'samovar_height{node="a"} 7']
    for status, count in counts.items():
        route = "/ready" if status == "ready" else "/v1/keys/{key}"
        code = "503" if status == "ready" else status[1:]
        lines.append(f'http_requests_total{{method="PUT",route="{route}",status="{code}"}} {count}')
    return "\n".join(lines) + "\n"


# Readings of some nodes before and after, and the share.
CASES = [
    ([metrics(s201=10)], [metrics(s201=10)], 0.0),
    ([metrics(s201=10)], [metrics(s201=110)], 0.0),
    ([metrics(s201=10)], [metrics(s201=100, s503=10)], 0.1),
    ([metrics(s201=10, s503=10)], [metrics(s201=110, s503=10)], 0.0),
    ([metrics(s201=10), metrics(s201=0)], [metrics(s201=60), metrics(s201=0, s500=50)], 0.5),
    # Counters begin again with the node.
    ([metrics(s201=1000, s500=500)], [metrics(s201=75, s500=25)], 0.25),
    # A node that drains tells its balancers so.
    ([metrics(s201=10)], [metrics(s201=20, ready=100)], 0.0),
    # 404 and 412 are answers.
    ([metrics(s201=0)], [metrics(s404=5, s412=5)], 0.0),
    ([""], [metrics(s502=3)], 1.0),
]


def main() -> int:
    wrong = [(case, found) for case in CASES if (found := failed_share(case[0], case[1])) != case[2]]
    for (before, after, expected), found in wrong:
        print(f"expected {expected}, got {found} for\n{before}\n{after}")
    print(f"shares of failed requests: {len(CASES) - len(wrong)} of {len(CASES)} as they should be")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
