"""What an admin should look at now: `cipherbox top` shows it, and the log has it when it begins.

The same conditions, with time to wait, are rules for Prometheus in packaging/cipherbox-alerts.yml.
"""

from __future__ import annotations

import logging
from collections import Counter

from cipherbox.alerting import CRITICAL, WARNING, Alert
from cipherbox.broker.listing import oldest
from cipherbox.ops.logs import get_logger
from cipherbox.portable import free_bytes
from cipherbox.server.operations.gauges import certificates
from cipherbox.server.operations.status import HqStatus

log = get_logger(__name__)
# HQ renews its certificate and its list long before; what an offline CA makes is carried by hand,
# and a CA's own certificate needs a root key from a safe.
_SOON_DAYS = {"server": 30, "issuing": 365, "root": 365, "crl": 3, "lists": 3}
_WHAT = {
    "server": "the server certificate",
    "issuing": "the issuing CA's certificate",
    "root": "the root certificate",
    "crl": "the revocation list",
    "lists": "a revocation list of the organization",
}
OLD_S = 24 * 3600  # a mailbox nobody empties for a day
_MOST = 20  # queues named one by one
_DAY_S, _DAY_MS = 86_400, 86_400_000


def alerts(hq: HqStatus) -> list[Alert]:
    """The worst first."""
    found = [*_store(hq), *_certificates(hq), *_queues(hq)]
    if hq.engine.draining:
        found.append(
            Alert(
                "draining",
                WARNING,
                "HQ drains: publishes wait. To take it back: cipherbox drain --undo",
            )
        )
    if hq.memory.closed:
        text = (
            "HQ is short of memory: publishers wait until slow consumers have taken what is held "
            "for them"
        )
        found.append(Alert("memory", WARNING, text))
    return sorted(found, key=lambda a: (a.severity != CRITICAL, a.name))


class Watch:
    """Puts into the log what an admin should look at: when it begins, and once a day while it
    lasts.
    """

    def __init__(self, hq: HqStatus) -> None:
        self._hq = hq
        self._said: dict[tuple[str, str], int] = {}  # (name, severity) -> when

    def look(self) -> list[Alert]:
        """Everything that is so now; what is new is in the log."""
        now, found = self._hq.clock_ms(), alerts(self._hq)
        here = Counter((alert.name, alert.severity) for alert in found)
        for gone in set(self._said) - set(here):
            del self._said[gone]
        for alert in found:
            key = (alert.name, alert.severity)
            if not 0 <= now - self._said.get(key, -_DAY_MS) < _DAY_MS:
                self._said[key] = now
                level = logging.ERROR if alert.severity == CRITICAL else logging.WARNING
                log.log(
                    level,
                    "To look at: %s",
                    alert.text,
                    extra={"alert": alert.name, "count": here[key]},
                )
        return found


def _store(hq: HqStatus) -> list[Alert]:
    found = []
    if hq.engine.outage:
        found.append(Alert("store", CRITICAL, f"the store does not answer: {hq.engine.outage}"))
    limits, free = hq.config.limits, free_bytes(hq.config.directory)
    if hq.engine.disk_full:
        found.append(
            Alert(
                "disk", CRITICAL, "the disk is full: publishes are refused, acks go on; make room"
            )
        )
    elif free < limits.disk_reserve_bytes + limits.disk_resume_bytes:
        text = (
            f"{free // 2**20} MiB are free in {hq.config.directory}: publishes are refused soon; "
            "make room"
        )
        found.append(Alert("disk", CRITICAL, text))
    return found


def _certificates(hq: HqStatus) -> list[Alert]:
    found = []
    for name, left_s in certificates(hq).items():
        days = left_s / _DAY_S
        if days < _SOON_DAYS[name]:
            when = f"ends in {days:.1f} days" if days > 0 else f"ended {-days:.1f} days ago"
            severity = CRITICAL if days < 1 else WARNING
            found.append(
                Alert(f"certificate-{name}", severity, f"{_WHAT[name]} {when}; {_advice(hq, name)}")
            )
    own, lists = hq.certificate, hq.lists
    if own.trouble:
        text = (
            f"HQ's certificate could not be renewed and is tried again every minute: {own.trouble}"
        )
        found.append(Alert("certificate-renewal", WARNING, text))
    if own.waiting:
        text = (
            f"HQ's own certificate waits for the CA, number {own.waiting}; carry the request: "
            "cipherbox ca export"
        )
        found.append(Alert("certificate-waiting", WARNING, text))
    if lists.trouble:
        found.append(
            Alert(
                "lists",
                WARNING,
                f"a revocation list was refused; what was known stays: {lists.trouble}",
            )
        )
    if lists.chain_revoked:
        what = "hq" if lists.own_is_revoked() else "ca"
        found.append(Alert(f"revoked-{what}", CRITICAL, f"nobody is let in: {lists.chain_revoked}"))
    return found


def _advice(hq: HqStatus, name: str) -> str:
    ca = hq.config.ca
    if name == "crl" or (name == "server" and ca.offline):
        return "carry the requests to the CA, and its answer back: cipherbox ca export"
    if name == "lists":
        return f"put a newer one in {ca.revocation_lists}"
    if name == "issuing":
        return (
            "have the organization renew it: cipherbox manual pki"
            if ca.organization
            else "cipherbox ca renew"
        )
    return (
        "every client must join an HQ with a new root before: cipherbox manual pki"
        if name == "root"
        else ("HQ renews it by itself; why not, is in its log")
    )


def _queues(hq: HqStatus) -> list[Alert]:
    now, found = hq.clock_ms(), []
    for queue in hq.engine.broker.state.queues.values():
        if queue.depth and not queue.consumers:
            age_s = (now - (oldest(queue) or now)) / 1000
            if age_s > OLD_S:
                text = (
                    f"{queue.depth} wait in {queue.name}, the oldest for {age_s / 3600:.0f} hours; "
                    "nobody reads it"
                )
                found.append((age_s, Alert("old-queue", WARNING, text, queue.name)))
    found.sort(reverse=True)
    return [alert for _, alert in found[:_MOST]]
