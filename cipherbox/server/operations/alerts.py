"""Alerts: conditions that an admin should attend to, in `cipherbox top` and in the log.

packaging/cipherbox-alerts.yml has the same conditions as rules for Prometheus.
"""

from __future__ import annotations

import logging
from collections import Counter

from cipherbox import clock
from cipherbox.alerting import CRITICAL, WARNING, Alert
from cipherbox.broker.listing import oldest
from cipherbox.ops.logs import get_logger
from cipherbox.portable import free_bytes
from cipherbox.server.operations.gauges import certificates
from cipherbox.server.operations.status import HqStatus

log = get_logger(__name__)
# HQ renews its certificate and its list long before; an offline CA's answers are carried by hand,
# and renewing a CA needs a root key from a safe.
SOON_DAYS = {"server": 30, "issuing": 365, "root": 365, "crl": 3, "lists": 3}
_WHAT = {
    "server": "the server certificate",
    "issuing": "the issuing CA's certificate",
    "root": "the root certificate",
    "crl": "the revocation list",
    "lists": "a revocation list of the organization",
}
OLD_S = 24 * 3600  # a queue that nobody has read for a day
_MOST = 20  # queues with an alert of their own
_DAY_S, _DAY_MS = 86_400, 86_400_000


def alerts(hq: HqStatus) -> list[Alert]:
    """Return the current alerts, critical ones first."""
    found = [*_store(hq), *_certificates(hq), *_queues(hq)]
    if doubt := hq.trust.clock.doubt:
        found.append(Alert("clock", CRITICAL, f"publishes are refused: {doubt}"))
    if hq.retention.behind_days:
        text = (
            f"records are due to be deleted, the oldest for {hq.retention.behind_days:.0f} days; "
            "HQ deletes those of one day each hour; if that is wrong, correct the clock or "
            "[retention] now: cipherbox manual clocks"
        )
        found.append(Alert("retention", WARNING, text))
    if clock.switch:
        text = f"the clock is moved for a test by {clock.SWITCH}; unset it"
        found.append(Alert("clock-test", CRITICAL, text))
    if hq.engine.draining:
        found.append(
            Alert(
                "draining",
                WARNING,
                "HQ is draining: publishes wait; to cancel: cipherbox drain --undo",
            )
        )
    if hq.memory.closed:
        text = (
            "HQ is low on memory: publishers wait until slow consumers have read what is held for "
            "them"
        )
        found.append(Alert("memory", WARNING, text))
    if missed_s := hq.standbys.missed_s():
        text = (
            f"no standby has waited for {missed_s / 60:.0f} minutes; start the other HQ: cipherbox "
            "serve; if there is to be none, restart this one"
        )
        found.append(Alert("standby", WARNING, text))
    return sorted(found, key=lambda a: (a.severity != CRITICAL, a.name))


class Watch:
    """Logs alerts: when they begin, and once a day while they last."""

    def __init__(self, hq: HqStatus) -> None:
        self._hq = hq
        self._logged: dict[tuple[str, str], int] = {}  # (name, severity) -> when

    def look(self) -> list[Alert]:
        """Return the current alerts; log new ones."""
        now, found = self._hq.clock_ms(), alerts(self._hq)
        here = Counter((alert.name, alert.severity) for alert in found)
        for gone in set(self._logged) - set(here):
            del self._logged[gone]
        for alert in found:
            key = (alert.name, alert.severity)
            if not 0 <= now - self._logged.get(key, -_DAY_MS) < _DAY_MS:
                self._logged[key] = now
                level = logging.ERROR if alert.severity == CRITICAL else logging.WARNING
                log.log(
                    level,
                    "Alert: %s",
                    alert.text,
                    extra={"alert": alert.name, "count": here[key]},
                )
        return found


def _store(hq: HqStatus) -> list[Alert]:
    found = []
    if hq.engine.outage:
        found.append(Alert("store", CRITICAL, f"the store is not available: {hq.engine.outage}"))
    limits, free = hq.config.limits, free_bytes(hq.config.directory)
    if hq.engine.disk_full:
        found.append(Alert("disk", CRITICAL, "the disk is full: publishes are refused; make room"))
    elif free < limits.disk_reserve_bytes + limits.disk_resume_bytes:
        text = (
            f"only {free // 2**20} MiB are free in {hq.config.directory}: publishes end soon; "
            "make room"
        )
        found.append(Alert("disk", CRITICAL, text))
    return found


def _certificates(hq: HqStatus) -> list[Alert]:
    found = []
    for name, left_s in certificates(hq).items():
        days = left_s / _DAY_S
        if days < SOON_DAYS[name]:
            when = f"expires in {days:.1f} days" if days > 0 else f"expired {-days:.1f} days ago"
            severity = CRITICAL if days < 1 else WARNING
            found.append(
                Alert(f"certificate-{name}", severity, f"{_WHAT[name]} {when}; {_advice(hq, name)}")
            )
    own, lists = hq.certificate, hq.lists
    if own.trouble:
        text = f"HQ's certificate could not be renewed; HQ retries every minute: {own.trouble}"
        found.append(Alert("certificate-renewal", WARNING, text))
    if own.waiting:
        text = (
            f"HQ's own request {own.waiting} waits for the CA; carry it there: cipherbox ca export"
        )
        found.append(Alert("certificate-waiting", WARNING, text))
    if lists.trouble:
        found.append(
            Alert(
                "lists",
                WARNING,
                f"a revocation list was refused; the previous one stays in effect: {lists.trouble}",
            )
        )
    if lists.chain_revoked:
        what = "hq" if lists.own_is_revoked() else "ca"
        text = f"new connections are refused: {lists.chain_revoked}"
        found.append(Alert(f"revoked-{what}", CRITICAL, text))
    return found


def _advice(hq: HqStatus, name: str) -> str:
    ca = hq.config.ca
    if name == "crl" or (name == "server" and ca.offline):
        return "carry the requests to the CA and its answer back: cipherbox ca export"
    if name == "lists":
        return f"put a newer one in {ca.revocation_lists}"
    if name == "issuing":
        return (
            "have the organization renew it: cipherbox manual pki"
            if ca.organization
            else "cipherbox ca renew"
        )
    return (
        "before that all clients must join an HQ with a new root: cipherbox manual pki"
        if name == "root"
        else ("HQ renews it automatically; its log says why it has not")
    )


def _queues(hq: HqStatus) -> list[Alert]:
    now, found = hq.clock_ms(), []
    for queue in hq.engine.broker.state.queues.values():
        if queue.depth and not queue.consumers:
            age_s = (now - (oldest(queue) or now)) / 1000
            if age_s > OLD_S:
                text = (
                    f"{queue.depth} envelopes wait in {queue.name}, the oldest for "
                    f"{age_s / 3600:.0f} hours; it has no consumer"
                )
                found.append((age_s, Alert("old-queue", WARNING, text, queue.name)))
    found.sort(reverse=True)
    return [alert for _, alert in found[:_MOST]]
