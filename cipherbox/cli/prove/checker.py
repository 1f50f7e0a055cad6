"""Check a report of `cipherbox prove` with Python's standard library alone.

    python3 checker.py report.json

This file shares no code with the program that wrote the report, and needs none of its modules: read
it, copy it, run it elsewhere (`cipherbox prove --checker` prints it).  The report contains what the
senders, the receivers, HQ and the observer of the processes each saw.  The rules compare the four:

1. A number is put once.  What HQ confirmed, and what a sender was told is in its outbox, arrived at
   each of its recipients.
2. Nothing arrived twice, unchanged or changed: sender, recipients, SHA-256 and file name of each
   arrival are those of the put.  Nothing arrived that was not put.
3. Order: if HQ had confirmed message A before its sender put message B, and both go to the same
   mailbox of a recipient, A arrived first.
4. Outbox: at the end nothing waits, is parked or is unfinished.  Each recipient signed a receipt
   that it opened the envelope, and has each message of it.
5. HQ's signed log: it is whole; each envelope of an outbox was accepted exactly once in its
   generation, from that sender, with that hash, in the entry whose proof the sender holds.  No
   envelope was accepted that its sender does not know.
6. HQ's metadata: each message was acknowledged by each recipient, nothing waits, nothing is a dead
   letter.
7. Memory and open files of each process stayed within the limits named in the report.
8. There was no standstill.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

FORMAT, VERSION = "cipherbox-prove-report", 1
_SHOWN = 20  # problems that the command line prints
Json = Any


class Check:
    """The rules over one report; ``problems`` are (rule, sentence)."""

    def __init__(self, report: Json) -> None:
        if report.get("format") != FORMAT or report.get("version") != VERSION:
            raise ValueError(f"this is not a {FORMAT} of version {VERSION}")
        self.report = report
        self.problems: list[tuple[str, str]] = []
        self.counts: Counter[str] = Counter()
        self.puts: dict[tuple[str, int], Json] = {}  # (sender, number) -> its put, with places
        self.arrived: dict[str, Counter[tuple[str, int]]] = {}
        self.ids: dict[str, set[str]] = {}  # receiver -> message ids
        self.files: dict[str, set[tuple[str, str]]] = {}  # receiver -> (sender, file name)
        for text in report["standstill"]:
            self._wrong("standstill", text)
        for name, sender in report["senders"].items():
            self._read_sender(name, sender["log"])
        for name, receiver in report["receivers"].items():
            self._read_receiver(name, receiver["lines"])
        self._arrivals()
        self._order()
        for name, sender in report["senders"].items():
            self._outbox(name, sender)
        self._log()
        self._metadata()
        self._processes()

    def _wrong(self, rule: str, text: str, count: int = 1) -> None:
        self.counts[rule] += count
        self.problems.append((rule, text))

    # -- rules 1 to 3 ------------------------------------------------------------------------------

    def _read_sender(self, name: str, log: Json) -> None:
        """Give each put its place in the sender's log, and that of its confirm."""
        for place, row in enumerate(log):
            for index in range(row["count"]):
                key = (name, row["first"] + index)
                if row["what"] == "put":
                    if key in self.puts:
                        self._wrong("unexpected", f"{name} put number {key[1]} twice")
                    self.puts[key] = {
                        "to": row["to"],
                        "kind": row["kind"],
                        "name": row["name"],
                        "sha256": row["sha256"][index],
                        "put": place,
                    }
                elif key in self.puts:
                    self.puts[key].setdefault(row["what"], place)  # "kept" or "ok"

    def _read_receiver(self, name: str, lines: Json) -> None:
        found = self.arrived[name] = Counter()
        ids: Counter[str] = Counter()
        for line in lines:
            ids[line["id"]] += 1
            key = (line["from"], line["number"])
            put = self.puts.get(key)
            if put is None or name not in put["to"]:
                self._wrong(
                    "unexpected", f"{name} has message {line['id']}, which was not sent to it"
                )
                continue
            found[key] += 1
            if line["sha256"] != put["sha256"]:
                self._wrong("changed", f"{name} has number {key[1]} of {key[0]}, changed")
            if line["name"] != put["name"]:
                self._wrong("changed", f"{name} has {put['name']} of {key[0]} as {line['name']}")
        self.ids[name] = set(ids)
        self.files[name] = {(line["from"], line["name"]) for line in lines if line["name"]}
        doubled = {key: count for key, count in found.items() if count > 1}
        for key, count in doubled.items():
            self._wrong(
                "duplicated", f"{name} has number {key[1]} of {key[0]} {count} times", count - 1
            )
        for one, count in ids.items():
            if count > 1 and not doubled:
                self._wrong("duplicated", f"{name} has message {one} {count} times", count - 1)

    def _arrivals(self) -> None:
        for (sender, number), put in self.puts.items():
            self.counts["put"] += len(put["to"])
            for recipient in put["to"]:
                arrived = self.arrived.get(recipient, Counter())[sender, number] > 0
                promised = "ok" in put or "kept" in put
                self.counts["confirmed"] += "ok" in put
                self.counts["kept"] += promised and "ok" not in put
                self.counts["recovered"] += arrived and not promised
                self.counts["files"] += arrived and put["kind"] == "file"
                self.counts["sessions"] += arrived and put["kind"] == "session"
                if promised and not arrived:
                    why = "HQ confirmed" if "ok" in put else f"{sender} had in its outbox"
                    self._wrong(
                        "lost", f"{recipient} never got number {number} of {sender}, which {why}"
                    )

    def _order(self) -> None:
        """Go backwards through each file of received lines; ``later`` is the earliest confirm of
        all that arrived later.

        Mail does not wait for what its recipient had sealed again: an envelope of two generations.
        """
        generations: dict[tuple[str, str], set[int]] = defaultdict(set)
        hq = self.report["hq"]
        for row in [*hq["accepted"], *hq["again"]] if hq else ():
            generations[row["sender"], row["envelope"][:-4]].add(row["generation"])
        for name, receiver in self.report["receivers"].items():
            later: dict[str, tuple[float, int]] = {}
            for line in reversed(receiver["lines"]):
                sender, number = line["from"], line["number"]
                put = self.puts.get((sender, number))
                if put is None or put["kind"] == "file":  # another mailbox; parts take their time
                    continue
                if len(generations[sender, line["id"].replace("-", "")[:-4]]) > 1:
                    continue
                confirm, other = later.get(sender, (float("inf"), 0))
                if confirm < put["put"]:
                    self._wrong(
                        "disordered",
                        f"{name} got number {number} of {sender} before number {other}, which HQ "
                        "had confirmed before the other was put",
                    )
                if put.get("ok", float("inf")) < confirm:
                    later[sender] = (put["ok"], number)

    # -- rules 4 to 6 ------------------------------------------------------------------------------

    def _outbox(self, sender: str, seen: Json) -> None:
        for transfer in seen["transfers"]:
            if transfer["state"] != "sent":
                self._wrong(
                    "undelivered", f"{sender}: the file {transfer['name']} is {transfer['state']}"
                )
                continue
            for recipient in transfer["to"]:
                if (sender, transfer["name"]) not in self.files.get(recipient, ()):
                    self._wrong("lost", f"{recipient} never got {transfer['name']} of {sender}")
        for row in seen["outbox"]:
            what = f"envelope {row['envelope']} of {sender}"
            if row["state"] != "confirmed":
                self._wrong("undelivered", f"{what} is {row['state']}: {row['why']}")
                continue
            if row["part"]:
                continue
            for recipient in row["to"]:
                outcome = row["receipts"].get(recipient, "no receipt")
                if outcome != "opened":
                    self._wrong("receipts", f"{what}: {recipient}: {outcome}")
                missing = set(_message_ids(row)) - self.ids.get(recipient, set())
                if missing and not row["box"] and outcome == "opened":
                    self._wrong("receipts", f"{recipient} signed for {what} and does not have it")
                self.counts["receipts"] += outcome == "opened"

    def _log(self) -> None:
        hq = self.report["hq"]
        for text in hq["log_wrong"] if hq else ():
            self._wrong("log", text)
        if not hq:
            return
        self.counts["log entries"] = hq["log_entries"]
        accepted: dict[tuple[str, str], list[Json]] = defaultdict(list)
        again: dict[tuple[str, str], list[Json]] = defaultdict(list)
        for row in hq["accepted"]:
            accepted[row["sender"], row["envelope"]].append(row)
        for row in hq["again"]:
            again[row["sender"], row["envelope"]].append(row)
        for name, sender in self.report["senders"].items():
            for row in sender["outbox"]:
                if row["state"] == "confirmed":
                    key = name, row["envelope"]
                    self._accepted(f"envelope {key[1]} of {name}", row, accepted[key], again[key])

    def _accepted(self, what: str, row: Json, accepted: list[Json], again: list[Json]) -> None:
        """A generation is accepted once.  One that was sealed when every recipient had the envelope
        already is confirmed again, and not accepted: then the proof of the one before stays.  It
        stays, too, where receipts of all came before it was sent, or before a confirm that was lost
        with the process: the envelope's bytes are gone then, and it is not sent again.
        """
        same = [one for one in accepted if one["generation"] == row["generation"]]
        confirms = [one for one in again if one["generation"] == row["generation"]]
        opened = all(row["receipts"].get(recipient) == "opened" for recipient in row["to"])
        if len(same) > 1 or not (same or (accepted and (confirms or opened))):
            self._wrong("log", f"HQ's log accepted {what} {len(same)} times")
            return
        if any(one["sha256"] != row["sha256"] for one in same + confirms):
            self._wrong("log", f"HQ's log has another hash for {what}")
            return
        proven = (accepted if opened or not same else same) + confirms
        if row["entry"] and row["entry"] not in [one["entry"] for one in proven]:
            self._wrong("log", f"the proof of {what} is of another entry")

    def _metadata(self) -> None:
        hq = self.report["hq"]
        if not hq:
            return
        for row in hq["dead_letters"]:
            self._wrong("dead letters", f"{row['queue']}: {row['reason']}, from {row['sender']}")
        if hq["deliveries"] is None:
            return
        states = {(one, queue): state for one, queue, state in hq["deliveries"]}
        senders = {row["envelope"]: row["sender"] for row in hq["accepted"]}
        known = set()
        for name, sender in self.report["senders"].items():
            for row in sender["outbox"]:
                known.add(row["envelope"])
                if row["state"] != "confirmed" or row["part"]:
                    continue
                wrong = {
                    states.get((one, f"box.{recipient}{row['box']}"), "unknown")
                    for one in _message_ids(row)
                    for recipient in row["to"]
                } - {"acknowledged"}
                if wrong:
                    self._wrong(
                        "metadata",
                        f"HQ says {', '.join(sorted(wrong))} of {row['envelope']} of {name}",
                    )
        boxes = {f"box.{name}" for name in self.report["receivers"]}
        for (one, queue), _ in sorted(states.items()):
            envelope = one.replace("-", "")[:28] + "0000"
            sender = senders.get(envelope, "nobody")
            if queue in boxes and envelope not in known:  # parts have another mailbox
                self._wrong("metadata", f"HQ had {envelope}, which its sender {sender} forgot")

    # -- rule 7 ------------------------------------------------------------------------------------

    def _processes(self) -> None:
        limits = self.report["limits"]
        for name, samples in self.report["processes"].items():
            memory = max((sample[1] for sample in samples), default=0)
            files = max((sample[2] for sample in samples), default=0)
            if memory > limits["memory_bytes"]:
                self._wrong("memory", f"{name} used {memory >> 20} MiB of memory")
            if files > limits["files"]:
                self._wrong("open files", f"{name} had {files} files open")


def _message_ids(row: Json) -> list[str]:
    """Return the ids of an envelope's messages: its own id, with the index as the last 16 bits."""
    whole = row["envelope"]
    ids = [f"{whole[:28]}{index:04x}" for index in range(row["messages"])]
    return [f"{i[:8]}-{i[8:12]}-{i[12:16]}-{i[16:20]}-{i[20:]}" for i in ids]


def check(report: Json) -> Check:
    """Return what the rules find in a report; raise ValueError if it is none."""
    try:
        return Check(report)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"this report is incomplete: {error!r}") from None


def main() -> int:
    """Check the report that the command line names; exit code 1 if a rule is broken."""
    if len(sys.argv) != 2:
        print("usage: checker.py REPORT", file=sys.stderr)
        return 2
    try:
        found = check(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    except (OSError, ValueError) as error:
        print(f"checker.py: {error}", file=sys.stderr)
        return 2
    for rule, text in found.problems[:_SHOWN]:
        print(f"{rule}: {text}")
    print(", ".join(f"{what} {count}" for what, count in sorted(found.counts.items())))
    return 1 if found.problems or not found.counts["confirmed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
