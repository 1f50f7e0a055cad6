"""Alerts told to people: by a command, a webhook, mail.  HQ and clients use it the same way.

1. What is to be looked at is found anew each time; a condition is known by its key.  It is told
   once when it begins and once when it has ended for a while, so that one that comes and goes is
   one alert and not a hundred.
2. What was told is in a file beside the data and is written after the telling: a restart repeats
   nothing, and a crash between the two tells once more rather than never.
3. A way that fails is tried a few times, then again at the next look.  It never stops what is
   watched, and the others are told all the same.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import orjson
import trio

from cipherbox import clock
from cipherbox.classes import define
from cipherbox.concurrency import Backoff
from cipherbox.config.alerts import AlertSettings, mail_server
from cipherbox.config.secret_file import secret
from cipherbox.errors import CipherBoxError
from cipherbox.portable import escape_text, write_atomic

FILE = "alerts.json"
WARNING, CRITICAL = "warning", "critical"
BEGINS, ENDS, TEST = "begins", "ends", "test"
LOOK_S = 60.0
END_AFTER_S = 300.0  # a condition that was gone for less did not end
TRIES, _PAUSE_S = 3, 2.0  # of one way at one look
MOST = 100  # of one look are sent; the rest is counted
_LONGEST = 2000  # characters of a text
_THREADS = 4
_threads: trio.lowlevel.RunVar[trio.CapacityLimiter] = trio.lowlevel.RunVar("cipherbox alerts")


class Alert(NamedTuple):
    """Something to be looked at: ``name`` and ``subject`` tell it from others, ``text`` says
    what is so, what to do.
    """

    name: str
    severity: str
    text: str
    subject: str = ""

    @property
    def key(self) -> str:
        return f"{self.name}:{self.subject}" if self.subject else self.name


@define
class Known:
    """A condition that was seen."""

    alert: Alert
    since: float
    seen: float  # last, seconds since 1970
    told: bool = False


class Failed(Exception):
    """A way did not take it; the text says why."""


# -- the ways --------------------------------------------------------------------------------------


async def by_command(settings: AlertSettings, event: dict[str, object]) -> None:
    """Runs the command with the JSON on its standard input."""
    import shlex
    import subprocess

    words = shlex.split(settings.command)
    try:
        with trio.fail_after(settings.timeout_s):
            done = await trio.run_process(
                words,
                stdin=orjson.dumps(event) + b"\n",
                check=False,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
    except trio.TooSlowError:
        raise Failed(f"{words[0]} did not end within {settings.timeout_s:g} s") from None
    except OSError as error:
        raise Failed(f"{words[0]}: {error.strerror or error}") from None
    if done.returncode:
        raise Failed(f"{words[0]} ended with {done.returncode}")


async def by_webhook(settings: AlertSettings, event: dict[str, object]) -> None:
    """POSTs the JSON; anything but 2xx is a failure, and no redirection is followed."""
    await _in_thread(settings, lambda: _post(settings, orjson.dumps(event)))


async def by_mail(settings: AlertSettings, event: dict[str, object]) -> None:
    """Sends a mail."""
    await _in_thread(settings, lambda: _mail(settings, event))


async def _in_thread(settings: AlertSettings, work: Callable[[], None]) -> None:
    from http.client import HTTPException

    try:
        # each step has the timeout; together no more than this
        with trio.fail_after(settings.timeout_s * 2):
            await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_limiter())
    except trio.TooSlowError:
        raise Failed(f"no answer within {settings.timeout_s:g} s") from None
    # smtplib's errors are OSErrors
    except (OSError, HTTPException, CipherBoxError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Failed(escape_text(text or type(error).__name__)) from None


def _limiter() -> trio.CapacityLimiter:
    """Threads of alerts alone: a server that answers a byte at a time must not take those the
    store works in.
    """
    try:
        return _threads.get()
    except LookupError:
        made = trio.CapacityLimiter(_THREADS)
        _threads.set(made)
        return made


def _trusted(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _post(settings: AlertSettings, body: bytes) -> None:
    from http.client import HTTPConnection, HTTPSConnection

    parts = urlsplit(settings.webhook)
    assert parts.hostname is not None
    if parts.scheme == "https":
        context = _trusted(settings.webhook_ca)
        connection: HTTPConnection = HTTPSConnection(
            parts.hostname, parts.port, timeout=settings.timeout_s, context=context
        )
    else:
        connection = HTTPConnection(parts.hostname, parts.port, timeout=settings.timeout_s)
    headers = {"Content-Type": "application/json", "User-Agent": "cipherbox"}
    if settings.webhook_authorization_file is not None:
        headers["Authorization"] = secret(settings.webhook_authorization_file).decode().strip()
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, body, headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise ValueError(f"{parts.hostname} answered {status}")


def _mail(settings: AlertSettings, event: dict[str, object]) -> None:
    import smtplib
    from email.message import EmailMessage

    host, port = mail_server(settings)
    message = EmailMessage()
    begins = "OVER: " if event["state"] == ENDS else "TEST: " if event["state"] == TEST else ""
    message["Subject"] = f"CipherBox {event['who']}: {begins}{str(event['text'])[:120]}"
    message["From"], message["To"] = settings.mail_from, settings.mail
    message["Date"] = clock.now()
    message["Auto-Submitted"] = "auto-generated"
    lines = [f"{key}: {value}" for key, value in event.items() if key != "text"]
    message.set_content(f"{event['text']}\n\n" + "\n".join(lines) + "\n")
    context = _trusted(settings.mail_ca)
    if settings.mail_tls == "tls":
        server: smtplib.SMTP = smtplib.SMTP_SSL(
            host, port, timeout=settings.timeout_s, context=context
        )
    else:
        server = smtplib.SMTP(host, port, timeout=settings.timeout_s)
    with server:
        if settings.mail_tls == "starttls":
            server.starttls(context=context)
        if settings.mail_user:
            assert settings.mail_password_file is not None
            server.login(
                settings.mail_user, secret(settings.mail_password_file).decode().rstrip("\r\n")
            )
        server.send_message(message)


WAYS: dict[str, Callable[[AlertSettings, dict[str, object]], Awaitable[None]]] = {
    "command": by_command,
    "webhook": by_webhook,
    "mail": by_mail,
}


def ways(settings: AlertSettings) -> list[str]:
    """Those that are set."""
    return [name for name in WAYS if getattr(settings, name)]


def event_of(who: str, state: str, alert: Alert, since: float) -> dict[str, object]:
    """What a way is given."""
    return {
        "who": who,
        "alert": alert.name,
        "subject": alert.subject,
        "state": state,
        "severity": alert.severity,
        "text": escape_text(alert.text, _LONGEST),
        "since": _time(since),
        "at": _time(clock.now_s()),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- what was told ---------------------------------------------------------------------------------


class Teller:
    """Tells of what begins and ends.  ``settings`` may be replaced; ``say(text, error)`` hears
    of ways that fail.
    """

    def __init__(
        self,
        who: str,
        settings: AlertSettings,
        directory: Path,
        say: Callable[[str, str], None] = lambda *_: None,
        *,
        end_after_s: float = END_AFTER_S,
        pause_s: float = _PAUSE_S,
        clock: Callable[[], float] = clock.now_s,
    ) -> None:
        self.who, self.settings, self.path = who, settings, directory / FILE
        self._say, self._clock = say, clock
        self._end_after_s, self._pause_s = end_after_s, pause_s
        # the file is for the next start: a full disk must repeat nothing
        self._known: dict[str, Known] | None = None

    def known(self) -> dict[str, Known]:
        """What was begun and is not over, as the file has it; a file that is none counts as
        empty.
        """
        try:
            rows = orjson.loads(self.path.read_bytes())
            return {
                k: Known(
                    Alert(*map(str, r["alert"])),
                    float(r["since"]),
                    float(r["seen"]),
                    bool(r["told"]),
                )
                for k, r in rows.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    async def look(self, found: Iterable[Alert]) -> None:
        """Compares what is so now with what was told, and tells the difference."""
        if self._known is None:
            self._known = self.known()
        now, known = self._clock(), self._known
        here = {alert.key: alert for alert in list(found)[:MOST]}
        for key, alert in here.items():
            row = known.setdefault(key, Known(alert, now, now))
            row.alert, row.seen = alert, min(max(row.seen, now), now)
        for key, row in list(known.items()):
            if key in here:
                if not row.told:
                    row.told = await self._tell(event_of(self.who, BEGINS, row.alert, row.since))
            elif not row.told:
                del known[key]  # it was over before anybody could be told
            elif not 0 <= now - row.seen < self._end_after_s and await self._tell(
                event_of(self.who, ENDS, row.alert, row.since)
            ):
                del known[key]
        self._write(known)

    def _write(self, known: dict[str, Known]) -> None:
        rows = {
            k: {"alert": list(r.alert), "since": r.since, "seen": r.seen, "told": r.told}
            for k, r in known.items()
        }
        try:
            write_atomic(self.path, orjson.dumps(rows), 0o600)
        except OSError as error:
            self._say("the state of the alerts could not be written", error.strerror or str(error))

    async def _tell(self, event: dict[str, object]) -> bool:
        """Whether a way took it; with none there is nobody to tell."""
        done = not ways(self.settings)
        for name in ways(self.settings):
            backoff = Backoff(self._pause_s)
            for attempt in range(1, TRIES + 1):
                why = await _why_not(name, self.settings, event)
                if not why:
                    done = True
                    break
                if attempt == TRIES:
                    self._say(f"[alerts] {name} did not take an alert", why)
                else:
                    await backoff.wait()
        return done


async def _why_not(name: str, settings: AlertSettings, event: dict[str, object]) -> str:
    """Why a way did not take it; empty: it did.  Whatever a way raises ends with that way."""
    try:
        await WAYS[name](settings, event)
    except Failed as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {escape_text(str(error))}"
    return ""


async def try_ways(settings: AlertSettings, who: str) -> dict[str, str]:
    """Way -> why it did not take a test; empty: it did."""
    alert = Alert("test", WARNING, "This is a test of CipherBox's alerts; nothing is wrong.")
    event = event_of(who, TEST, alert, clock.now_s())
    return {name: await _why_not(name, settings, event) for name in ways(settings)}
