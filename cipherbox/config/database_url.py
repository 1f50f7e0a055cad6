"""A database URL as people write it: postgresql://user@host:port,host:port/name?schema=...&tls=...

Any key of the table `[database]` may stand behind the question mark.  A host that is a directory
names a socket: write it as hosts=/var/run/postgresql.  A URL never holds a password: it would stand
in arguments, in the shell's history, and in files that others read.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from cipherbox.errors import ConfigError

PORT = 5432
SCHEMES = ("postgresql", "postgres")


def parse_url(text: str) -> dict[str, str]:
    """Return the settings of `[database]` in a URL, by name.  ConfigError never repeats the URL,
    which may contain a secret.
    """
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            "a database URL begins with postgresql://", remedy="for SQLite, leave the URL out"
        )
    found = {"kind": "postgresql"}
    who, at, places = parts.netloc.rpartition("@")
    user, colon, _ = who.partition(":")
    if colon:
        raise ConfigError(
            "a password does not belong in a URL, where others can read it: put it in a file "
            "(chmod 600) and name it with password_file=FILE behind the question mark"
        )
    if at:
        found["user"] = unquote(user)
    if places:
        found["hosts"] = unquote(places)
    name = unquote(parts.path.removeprefix("/"))
    if "/" in name:
        raise ConfigError("a database URL has one name behind the host")
    if name:
        found["name"] = name
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key == "password":
            raise ConfigError(
                "a password does not belong in a URL: name a file that holds it with "
                "password_file=FILE"
            )
        if key in ("kind", "url", "path") or key in found:
            raise ConfigError(f"the database URL says {key} where it cannot stand")
        found[key] = value
    return found


def parse_hosts(text: str) -> tuple[tuple[str, int], ...]:
    """Return ``host:port, host, [v6]:port, /directory:port`` as pairs."""
    found: list[tuple[str, int]] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        host, colon, port = part.rpartition(":")
        if not colon or part.endswith("]") or (":" in host and not host.endswith("]")):
            host, port = part, str(PORT)
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ConfigError(f"{part!r} is not host:port")
        found.append((host, int(port)))
    if not found:
        raise ConfigError(
            "[database] hosts: say where PostgreSQL is, for example db.example.org:5432"
        )
    return tuple(found)
