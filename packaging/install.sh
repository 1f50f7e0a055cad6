#!/bin/sh
# Installs CipherBox HQ on this machine as a systemd service; run it as root, again for an update.
#
#   sudo packaging/install.sh [dist/cipherbox.pyz]
#
# It makes the user `cipherbox`, copies the one file to /opt/cipherbox, the command to /usr/local/bin and the unit to
# /etc/systemd/system. It makes no certificates and starts nothing that is not initialised: it says what to do next.
# DESTDIR=/somewhere puts the files below that directory and leaves users and systemd alone.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
file=${1:-$here/../dist/cipherbox.pyz}
unit=$here/../systemd/cipherbox.service
root=${DESTDIR:-}

[ -f "$file" ] || { echo "There is no $file: run 'make pyz' first, or name the file." >&2; exit 1; }
[ -f "$unit" ] || { echo "There is no $unit." >&2; exit 1; }
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { echo "CipherBox needs Python 3.11 or newer as python3." >&2; exit 1; }
[ -n "$root" ] || [ "$(id -u)" -eq 0 ] || { echo "Run this as root." >&2; exit 1; }

if [ -z "$root" ] && ! id cipherbox >/dev/null 2>&1; then
    useradd --system --user-group --home-dir /var/lib/cipherbox --no-create-home --shell /usr/sbin/nologin cipherbox
fi

install -d -m 0755 "$root/opt/cipherbox" "$root/usr/local/bin" "$root/etc/systemd/system"
# Beside it first and then renamed, so that a running service never sees half a file.
install -m 0755 "$file" "$root/opt/cipherbox/cipherbox.pyz.new"
mv -f "$root/opt/cipherbox/cipherbox.pyz.new" "$root/opt/cipherbox/cipherbox.pyz"
printf '#!/bin/sh\nexec python3 /opt/cipherbox/cipherbox.pyz "$@"\n' >"$root/usr/local/bin/cipherbox"
chmod 0755 "$root/usr/local/bin/cipherbox"
install -m 0644 "$unit" "$root/etc/systemd/system/cipherbox.service"
# For an account of this machine that has a folder of its own: systemctl enable --now cipherbox-agent@NAME
install -m 0644 "$here/../systemd/cipherbox-agent@.service" "$root/etc/systemd/system/cipherbox-agent@.service"

if [ -z "$root" ]; then
    install -d -m 0700 -o cipherbox -g cipherbox /var/lib/cipherbox /var/cache/cipherbox
    systemctl daemon-reload
    if [ -f /var/lib/cipherbox/cipherbox.toml ]; then
        systemctl try-restart cipherbox
    fi
fi

echo "Installed: $root/opt/cipherbox/cipherbox.pyz"
if [ ! -f "$root/var/lib/cipherbox/cipherbox.toml" ]; then
    cat <<'NEXT'
Next: make HQ's directory (the admin's certificate goes to /var/lib/cipherbox/admin), then start it:
      sudo -u cipherbox env SHIV_ROOT=/var/cache/cipherbox cipherbox --home /var/lib/cipherbox/admin \
          init /var/lib/cipherbox --address hq.example.org:7443
      sudo systemctl enable --now cipherbox
      sudo -u cipherbox env SHIV_ROOT=/var/cache/cipherbox cipherbox --home /var/lib/cipherbox/admin enroll FL-LAB
NEXT
fi
