"""The units: right in the eyes of systemd, tight, each line with its reason, and of the paths
that `install` makes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cipherbox.cli.install.files import UNITS, unit
from cipherbox.cli.install.places import SERVER, SOCKETS, system_places
from cipherbox.limits import LIMITS
from cipherbox.ops import systemd

FOLDER = Path(__file__).resolve().parent.parent / "systemd"
ALL = sorted(path.name for path in FOLDER.iterdir() if path.suffix != ".conf")  # drop-ins aside
ANALYZE = shutil.which("systemd-analyze")
SECTIONS = {"Unit", "Service", "Socket", "Install"}


def parsed(name: str) -> dict[str, list[str]]:
    """Every setting as `Section.Key`, with its values; AssertionError where a line is none."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            assert section in SECTIONS, line
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            assert re.fullmatch(r"[A-Z][A-Za-z]+", key), line
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


@pytest.mark.parametrize("name", ALL)
def test_each_unit_can_be_read_and_starts_somewhere(name: str) -> None:
    found = parsed(name)
    assert found["Unit.Description"]
    assert found["Install.WantedBy"]


@pytest.mark.parametrize("name", ALL)
def test_systemd_finds_nothing_to_say(name: str, tmp_path: Path) -> None:
    if ANALYZE is None:
        pytest.skip("no systemd-analyze here; the test before reads the units itself")
    for other in ALL:
        text = (FOLDER / other).read_text("utf-8")
        (tmp_path / other).write_text(
            re.sub(r"(?m)^ExecStart=\S+", "ExecStart=/bin/true", text), "utf-8"
        )
    asked = tmp_path / name.replace("@.", "@lab.")
    if not asked.exists():
        asked.symlink_to(name)
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", "--recursive-errors=no", str(asked)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["cipherbox.service", "cipherbox-agent@.service"])
def test_the_sandbox_scores_well(name: str) -> None:
    if ANALYZE is None:
        pytest.skip("no systemd-analyze here; the next test reads what it would judge by")
    command = [
        ANALYZE,
        "security",
        "--offline=true",
        "--threshold=15",
        "--no-pager",
        str(FOLDER / name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-300:]
    assert "Overall exposure level" in done.stdout


def test_the_sandbox_is_there_without_systemd_to_ask() -> None:
    found = parsed("cipherbox.service")
    wanted = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "PrivateUsers": "yes",
        "CapabilityBoundingSet": "",
        "MemoryDenyWriteExecute": "yes",
        "RestrictNamespaces": "yes",
        "SystemCallArchitectures": "native",
        "ProtectProc": "invisible",
    }
    assert {key: found[f"Service.{key}"][-1] for key in wanted} == wanted
    assert found["Service.SystemCallFilter"] == ["@system-service", "~@privileged @resources"]


@pytest.mark.parametrize(
    "name", ["cipherbox.service", "cipherbox-agent.service", "cipherbox.socket"]
)
def test_each_run_of_lines_has_its_reason(name: str) -> None:
    before = ""
    for line in (FOLDER / name).read_text("utf-8").splitlines():
        is_setting = bool(line) and line[0] not in "#["
        if is_setting and (not before or before[0] == "["):
            raise AssertionError(f"{line} has no comment before it")
        before = line


def test_limits_fit_the_documented_load() -> None:
    found = parsed("cipherbox.service")
    sessions = 2 * LIMITS.connections  # half of them still greeting
    assert int(found["Service.LimitNOFILE"][0]) >= sessions + 1024
    held = (
        LIMITS.memory_high_bytes + LIMITS.body_cache_bytes + LIMITS.engine_bytes + sessions * 45_000
    )
    high, most = (_bytes(found[f"Service.{key}"][0]) for key in ("MemoryHigh", "MemoryMax"))
    assert 1.5 * held < high < most
    assert int(found["Service.TimeoutStopSec"][0]) > LIMITS.stop_s
    assert int(found["Service.TasksMax"][0]) >= 64


def _bytes(text: str) -> int:
    return int(text[:-1]) * {"M": 2**20, "G": 2**30}[text[-1]]


def test_units_and_installation_agree_on_paths_and_names() -> None:
    places = system_places(Path("/"))
    service = parsed("cipherbox.service")
    assert service["Service.ExecStart"] == [f"{places.current}/bin/cipherbox serve {places.data}"]
    assert service["Service.StateDirectory"] == [places.data.name]
    assert service["Service.Type"] == ["notify"]
    assert int(service["Service.WatchdogSec"][0]) >= 60
    names = {parsed(name)["Socket.FileDescriptorName"][0] for name in SOCKETS}
    assert names == {systemd.PLAIN, systemd.WEBSOCKET}
    assert {*SOCKETS, "cipherbox.service"} <= set(UNITS[SERVER])
    assert {*UNITS[SERVER], "cipherbox-agent.service"} == set(ALL)
    assert unit("cipherbox.service") == (FOLDER / "cipherbox.service").read_bytes()
