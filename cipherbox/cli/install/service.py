"""The calls of `install` and `uninstall` to systemd, once everything is in place."""

from __future__ import annotations

import shutil
import subprocess

from cipherbox.cli.install.checks import runs_systemd
from cipherbox.cli.install.places import SOCKETS, USER, Places
from cipherbox.cli.install.programs import call
from cipherbox.cli.install.steps import listen_steps
from cipherbox.config.settings import SERVER_FILE
from cipherbox.errors import ConfigError
from cipherbox.portable import ids_of

SERVICE = "cipherbox.service"


def start_service(
    places: Places, *, ready: bool, start: bool, changed: bool, moved: bool, first: bool
) -> None:
    """Reload the units and restart a running HQ; ``start``: also start one that does not run.

    An HQ whose store is not ``ready`` for the new program is left alone.  The sockets stay open
    during a restart, unless they ``moved`` or systemd takes them over for the ``first`` time.
    """
    for step in listen_steps(places):
        if not step.done():
            step.do()
    call(["systemctl", "daemon-reload"])
    if not ready:
        return
    made = (places.data / SERVER_FILE).exists()
    sockets = [unit for unit in SOCKETS if (places.units / f"{unit}.d" / "listen.conf").exists()]
    if made and _stands_by(places):
        sockets.clear()
    running = _is("is-active")
    if (start and not running) or (running and (moved or first)):
        call(["systemctl", "stop", SERVICE])
        call(["systemctl", "enable", *sockets, SERVICE])
        if sockets:
            _listen(places, sockets)
        call(["systemctl", "start", SERVICE])
    elif changed and running:
        call(["systemctl", "restart", SERVICE])


def _listen(places: Places, sockets: list[str]) -> None:
    """Restart the sockets.  Raise ConfigError with the process that occupies a port."""
    from cipherbox.config.settings import load_server_config
    from cipherbox.server.operations.port_check import taken, wanted

    try:
        call(["systemctl", "restart", *sockets])
    except ConfigError as error:
        tried = [taken(host, port) for _, host, port in wanted(load_server_config(places.data))]
        why = [problem for problem in tried if problem]
        remedies = dict.fromkeys(problem.remedy for problem in why if problem.remedy)
        raise ConfigError(
            "; ".join([str(error), *(problem.what for problem in why)]),
            remedy="; ".join(
                [*remedies, f"then run: systemctl restart {' '.join(sockets)} {SERVICE}"]
            ),
        ) from None


def make_hq(places: Places, address: str) -> None:
    """Create HQ's directory as its user; an existing one is left unchanged."""
    ids = ids_of(USER)
    if ids is None or (places.data / SERVER_FILE).exists():
        return
    command = [str(places.command), "--home", str(places.data / "admin"), "init", str(places.data)]
    as_user = {
        "user": ids[0],
        "group": ids[1],
        "extra_groups": [],
        "umask": 0o077,
        "cwd": str(places.data),
    }
    call([*command, "--address", address], **as_user)


def _stands_by(places: Places) -> bool:
    """Return whether another HQ may serve the same database; clients must then be refused here
    while it does.
    """
    from cipherbox.config.settings import load_server_config

    return load_server_config(places.data).database.kind == "postgresql"


def _is(what: str) -> bool:
    return subprocess.run(["systemctl", what, "--quiet", SERVICE], check=False).returncode == 0


def stop_service(places: Places) -> None:
    """Stop HQ, and do not start it at boot any more."""
    units = [unit for unit in [*SOCKETS, SERVICE] if (places.units / unit).exists()]
    if runs_systemd() and units:
        call(["systemctl", "disable", "--now", *units])


def forget_service(*, user: bool) -> None:
    """Make systemd forget the removed units; ``user``: delete HQ's user, too."""
    if runs_systemd():
        call(["systemctl", "daemon-reload"])
    if user and ids_of(USER) is not None:
        call(["userdel" if shutil.which("userdel") else "deluser", USER])
