"""`install` on a machine: its user, its HQ, what systemd is told; in a namespace whose changes
nobody else sees.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cipherbox.cli.install.checks import usable_by_all
from cipherbox.harness.stage import free_port
from cipherbox.portable import ids_of, is_root

from .conftest import ENVIRONMENT

# What lies over the system is gone with the namespace. systemctl is a stand-in that notes what it
# is told.
SCRIPT = r"""
set -e
base=$1; pyz=$2; python=$3; port=$4
mount -t tmpfs none "$base"
for part in etc opt usr/local var/lib; do
    over="$base/$(echo $part | tr / _)"
    mkdir -p "$over/upper" "$over/work"
    mount -t overlay none -o "lowerdir=/$part,upperdir=$over/upper,workdir=$over/work" "/$part"
done
mount -t tmpfs none /run
[ "$5" = try ] && exit 0
rm -rf /opt/cipherbox /etc/cipherbox /var/lib/cipherbox
mkdir -p "$base/bin"
cat >"$base/bin/systemctl" <<END
#!/bin/sh
echo "systemctl \$*" >>$base/calls
case "\$1 \$2" in
"is-active "*) [ -e $base/running ];;
"restart cipherbox.socket")
  [ ! -e $base/refused ] || { echo "Job for cipherbox.socket failed." >&2; exit 1; };;
esac
END
chmod 755 "$base/bin/systemctl"
export PATH="$base/bin:$PATH" CIPHERBOX_CACHE="$base/cache"
mark() { echo "== $1"; [ ! -e "$base/calls" ] || cat "$base/calls"; rm -f "$base/calls"; }
"$python" "$pyz" install 2>&1 || echo "code $?"
mkdir -p /run/systemd/system
mark refused
"$python" "$pyz" install --address "127.0.0.1:$port"; mark first
stat -c '%U %a %n' /var/lib/cipherbox /var/lib/cipherbox/cipherbox.toml /opt/cipherbox/current/
cat /etc/cipherbox/cipherbox.toml /etc/systemd/system/cipherbox.socket.d/listen.conf
id -u cipherbox
touch "$base/running"
cipherbox install; mark again
sed -i "s/^listen = .*/listen = \"127.0.0.1:$7\"/" /var/lib/cipherbox/cipherbox.toml
cipherbox install; mark moved
sed -i "s/^listen = .*/listen = \"127.0.0.1:$6\"/" /var/lib/cipherbox/cipherbox.toml
echo "== said"; cipherbox install 2>&1 || echo "code $?"; mark taken
sed -i "s/^listen = .*/listen = \"127.0.0.1:$port\"/" /var/lib/cipherbox/cipherbox.toml
touch "$base/refused"
echo "== failed"; cipherbox install 2>&1 || echo "code $?"; mark tried
"$python" "$pyz" uninstall; mark gone
[ -e /var/lib/cipherbox/cipherbox.sqlite3 ] && echo "the data is there"
"$python" "$pyz" uninstall --purge --yes >"$base/out"; mark purged
[ ! -e /var/lib/cipherbox ] && ! id cipherbox 2>/dev/null && echo "nothing is left"
"""
PORT, MOVED = free_port(), free_port()
PYTHON = Path(shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable)


def run(base: Path, pyz: Path, mode: str, taken: int = 0) -> subprocess.CompletedProcess[str]:
    base.mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh"]
    command += [str(base), str(pyz), str(PYTHON), str(PORT), mode, str(taken), str(MOVED)]
    return subprocess.run(
        command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False, cwd="/"
    )


def test_a_whole_machine(pyz: Path, tmp_path: Path) -> None:
    ask = [str(PYTHON), "-c", "import sys; print(sys.version_info[:2])"]
    same = subprocess.run(ask, capture_output=True, text=True, check=False)
    if not is_root() or ids_of("cipherbox") or same.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(
            "needs root, a machine without HQ, and a system's Python of the version that built "
            "the file"
        )
    if not usable_by_all(PYTHON) or run(tmp_path / "try", pyz, "try").returncode != 0:
        pytest.skip("needs a system's Python and namespaces with overlays")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = run(tmp_path / "machine", pyz, "all", port)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = dict(part.split("\n", 1) for part in ("start\n" + done.stdout).split("== "))
    assert "does not run systemd" in parts["start"]
    assert "code 5" in parts["start"]
    assert parts["refused"].count("systemctl") == 0
    calls = [line[10:] for line in parts["first"].splitlines() if line.startswith("systemctl ")]
    assert calls == [
        "daemon-reload",
        "is-active --quiet cipherbox.service",
        "stop cipherbox.service",
        "enable cipherbox.socket cipherbox.service",
        "restart cipherbox.socket",
        "start cipherbox.service",
    ]
    assert "cipherbox 700 /var/lib/cipherbox\n" in parts["first"]
    assert (
        "cipherbox 600 /var/lib/cipherbox/cipherbox.toml\n" in parts["first"]
        or "cipherbox 644" in parts["first"]
    )
    assert "root 755 /opt/cipherbox/current/\n" in parts["first"]
    assert "[server]" in parts["first"]
    assert "ListenStream=127.0.0.1:" in parts["first"]
    assert "was installed already" in parts["first"]
    assert "restart" not in parts["again"]
    assert "restart cipherbox.socket" in parts["moved"]
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in parts["said"]
    assert "HQ still listens on its previous addresses" in parts["said"]
    assert "ind the program (ss -ltnp" in parts["said"]
    assert "code 5" in parts["said"]
    assert "stop" not in parts["taken"]
    assert "Job for cipherbox.socket failed" in parts["failed"]
    assert "Then run: systemctl restart cipherbox.socket cipherbox.service" in parts["failed"]
    assert (
        "disable --now cipherbox.socket cipherbox-websocket.socket cipherbox.service"
        in parts["gone"]
    )
    assert "the data is there" in parts["gone"]
    assert "nothing is left" in parts["purged"]
    assert not ids_of("cipherbox")
    assert not os.path.exists("/opt/cipherbox")
