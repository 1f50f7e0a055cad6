"""Table `[alerts]`: how people are notified when something needs attention.  HQ and clients have
the same table.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from cipherbox.classes import frozen
from cipherbox.config.secret_file import check_credential
from cipherbox.config.toml_file import setting
from cipherbox.errors import ConfigError, InvalidRequest
from cipherbox.limits import check_client_id

MAIL_TLS = ("starttls", "tls", "off")
_UNITS = {"m": 60, "h": 3600, "d": 86_400}


@frozen
class AlertSettings:
    """Table `[alerts]`."""

    command: str = setting("", "command run for each alert, with its JSON on standard input")
    webhook: str = setting("", "https:// address to which the JSON of each alert is POSTed")
    webhook_authorization_file: Path | None = setting(
        None, "file with the value of the Authorization header"
    )
    webhook_ca: Path | None = setting(
        None, "CA certificates for the webhook (PEM); empty: the system's trust store"
    )
    mail: str = setting("", "addresses to which each alert is mailed, separated by commas")
    mail_from: str = setting("", "sender address of the mail")
    mail_server: str = setting("", "host:port of the mail server")
    mail_tls: str = setting(
        "starttls", "encryption to the mail server; off: on this machine only", choices=MAIL_TLS
    )
    mail_user: str = setting("", "user at the mail server")
    mail_password_file: Path | None = setting(
        None, "file with that user's password; credential:NAME: from systemd"
    )
    mail_ca: Path | None = setting(
        None, "CA certificates for the mail server (PEM); empty: the system's trust store"
    )
    timeout_s: float = setting(30.0, "timeout of each channel", low=0.1)
    stuck_minutes: int = setting(
        60, "client: alert if HQ has not confirmed a message for this number of minutes", low=1
    )
    certificate_days: int = setting(
        30, "client: alert if its certificate expires within this number of days", low=1
    )
    quiet: str = setting(
        "", "client: alert if a sender is silent for this long, for example FL-LAB 24h, PA-LAB 7d"
    )

    @property
    def any(self) -> bool:
        """Return whether any channel is configured."""
        return bool(self.command or self.webhook or self.mail)

    @property
    def quiet_s(self) -> Mapping[str, float]:
        """Return how long each listed sender may be silent; raise ConfigError if it is invalid."""
        found = {}
        for part in filter(None, (p.strip() for p in self.quiet.split(","))):
            name, _, text = part.partition(" ")
            match = re.fullmatch(r"(\d+)([mhd])", text.strip())
            try:
                check_client_id(name)
            except InvalidRequest as error:
                raise ConfigError(f"[alerts] quiet: {error}") from None
            if not match or not int(match[1]):
                raise ConfigError(
                    f"[alerts] quiet: {part!r} is not a client id and a time: FL-LAB 24h, PA-LAB 7d"
                )
            found[name] = float(int(match[1]) * _UNITS[match[2]])
        return found


def check_alerts(file: Path, settings: AlertSettings) -> None:
    """Raise ConfigError for settings that cannot work."""
    where = f"{file}: [alerts]"
    try:
        _ = settings.quiet_s
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    try:
        words = shlex.split(settings.command)
    except ValueError as error:
        raise ConfigError(f"{where} command: {error}") from None
    if settings.command and not words:
        raise ConfigError(f"{where} command: name a program")
    _check_webhook(where, settings)
    for name in ("webhook_authorization_file", "mail_password_file"):
        check_credential(f"{where} {name}", getattr(settings, name))
    if not settings.mail:
        return
    for name in ("mail_from", "mail_server"):
        if not getattr(settings, name):
            raise ConfigError(f"{where} {name}: mail needs it")
    for address in [*settings.mail.split(","), settings.mail_from]:
        if not re.fullmatch(r"[^\s@<>,]+@[^\s@<>,]+", address.strip()):
            raise ConfigError(f"{where} mail: {address.strip()!r} is not a mail address")
    host, _ = mail_server(settings, where)
    if settings.mail_tls == "off" and host not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(f"{where} mail_tls: off is for a mail server on this machine alone")
    if settings.mail_user and settings.mail_password_file is None:
        raise ConfigError(
            f"{where} mail_password_file: name the file with the password of {settings.mail_user!r}"
        )


def _check_webhook(where: str, settings: AlertSettings) -> None:
    if not settings.webhook:
        return
    parts = urlsplit(settings.webhook)
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.username or parts.password:
        raise ConfigError(
            f"{where} webhook is an address like https://host/path; a secret goes into the file "
            "that webhook_authorization_file names"
        )
    if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(
            f"{where} webhook: http:// is for this machine alone; elsewhere say https://"
        )


def mail_server(settings: AlertSettings, where: str = "[alerts]") -> tuple[str, int]:
    """Return host and port of the mail server; raise ConfigError if they are invalid."""
    host, colon, port = settings.mail_server.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigError(f"{where} mail_server: {settings.mail_server!r} is not host:port")
    return host.strip("[]"), int(port)
