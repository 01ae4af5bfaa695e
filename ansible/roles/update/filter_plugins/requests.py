"""Filter `samovar_failed_share`: which share of requests failed between two readings of the metrics of some nodes."""

import re

LINE = re.compile(r"^http_requests_total\{(.*)\} ([0-9.e+]+)$", re.MULTILINE)
STATUS, ROUTE = re.compile(r'status="(\d+)"'), re.compile(r'route="([^"]*)"')
# They say how a node is; 503 is an answer of theirs.
PROBES = ("/ready", "/health")


def requests(metrics: str) -> dict[str, float]:
    """Requests by their labels."""
    return {labels: float(count) for labels, count in LINE.findall(metrics) if ROUTE.search(labels)[1] not in PROBES}


def failed_share(before: list[str], after: list[str]) -> float:
    """Between 0 and 1; 0 if there was no request. A node that was started again meanwhile counts from 0."""
    total = failed = 0.0
    for first, then in zip(before, after, strict=True):
        old = requests(first)
        for labels, count in requests(then).items():
            since = count - old.get(labels, 0.0)
            since = count if since < 0 else since
            total += since
            failed += since if STATUS.search(labels)[1].startswith("5") else 0
    return failed / total if total else 0.0


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict:
        return {"samovar_failed_share": lambda before, after: failed_share(list(before), list(after))}
