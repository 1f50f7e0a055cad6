"""Settings: what a file may say, and what it says when it says something else."""

import ast
from pathlib import Path

import attrs
import pytest

import cipherbox
from cipherbox.config import settings as config
from cipherbox.config.toml_file import FIXED_LIMITS
from cipherbox.errors import ConfigError
from cipherbox.limits import LIMITS, Limits


def hq(directory: Path, text: str) -> config.ServerConfig:
    (directory / "cipherbox.toml").write_text(text, encoding="utf-8")
    return config.load_server_config(directory)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    made = config.ServerConfig(
        tmp_path,
        server=config.ServerSettings(
            name='HQ "east"\\\t', listen="[::1]:0, 127.0.0.1:7443", address="hq.example:7443"
        ),
        logging=config.LoggingSettings(level="DEBUG", directory=Path("logs"), rotation="hourly"),
        ca=config.CaSettings(offline=True),
        limits=Limits(quota_bytes=5, stop_s=2.5),
    )
    file = config.write_server_config(made)
    assert config.load_server_config(file) == config.load_server_config(tmp_path) == made
    assert made.limits.quota_bytes == 5
    assert made.tls.key == tmp_path / "tls/server.key"
    assert made.logging.directory == tmp_path / "logs"


def test_an_empty_file_has_every_default(tmp_path: Path) -> None:
    assert hq(tmp_path, "") == config.ServerConfig(tmp_path)
    assert hq(tmp_path, "").limits == LIMITS
    assert hq(tmp_path, "").logging.directory is None


def test_absolute_paths_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path.parent / "elsewhere.key"
    loaded = hq(tmp_path, f'[encryption]\nservice_key_file = "{elsewhere.as_posix()}"\n')
    assert loaded.encryption.service_key_file == elsewhere


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[sever]\n", ["[sever]", "did you mean 'server'"]),
        ("[server]\nlissten = 'x'\n", ["[server]", "'lissten'", "did you mean 'listen'"]),
        ("[server]\nqqqq = 1\n", ["'qqqq'", "known: name, listen"]),
        ("[server]\nlisten = 7443\n", ["[server] listen", "a text in quotes", "7443"]),
        ("[ca]\noffline = 1\n", ["[ca] offline", "true or false"]),
        ("[logging]\nkeep = true\n", ["[logging] keep", "a whole number", "True"]),
        (
            "[logging]\nlevel = 'info'\n",
            ["[logging] level", "DEBUG, INFO, WARNING, ERROR", "'info'"],
        ),
        ("[logging]\nlargest_bytes = 12\n", ["largest_bytes", "at least 4096"]),
        ("[tls]\nkey = ''\n", ["[tls] key", "cannot be empty"]),
        ("[limits]\nrecipients = 5\n", ["[limits] recipients", "fixed", "remove the line"]),
        ("[limits]\nquota_bytes = 0\n", ["[limits] quota_bytes", "at least 1"]),
        ("[limits]\nquota_bytes = 1.5\n", ["[limits] quota_bytes", "a whole number"]),
        ("[server]\nlisten = 'localhost'\n", ["[server] listen", "not host:port"]),
        ("[server]\nlisten = '::1:7443'\n", ["[server] listen", "brackets"]),
        ("[server]\nlisten = 'h:70000'\n", ["0 to 65535"]),
        ("[server]\nlisten = ''\n", ["at least one host:port"]),
        ("[server]\naddress = ''\n", ["[server] address", "clients need HQ's address"]),
        ("server = 1\n", ["write [server]"]),
        ("[server", ["is not TOML"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        hq(tmp_path, text)
    for part in ["cipherbox.toml", *says]:
        assert part in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cipherbox init"):
        config.load_server_config(tmp_path)
    with pytest.raises(ConfigError, match=f"cipherbox --home {tmp_path} join"):
        config.load_client_config(tmp_path)


def test_every_limit_is_either_fixed_or_settable(tmp_path: Path) -> None:
    names = {a.name for a in attrs.fields(Limits)}
    assert names >= FIXED_LIMITS
    settable = sorted(names - FIXED_LIMITS)
    loaded = hq(tmp_path, "[limits]\n" + "".join(f"{name} = 7\n" for name in settable))
    assert {getattr(loaded.limits, name) for name in settable} == {7}


def test_every_settable_limit_is_obeyed_by_hq() -> None:
    """It is read from HQ's own limits somewhere, and nowhere at HQ from the defaults."""
    package = Path(cipherbox.__file__).parent
    files = [
        file
        for layer in ("server", "broker", "store", "wire", "net")
        for file in (package / layer).rglob("*.py")
    ]
    own, defaults = set(), set()
    for file in [*files, *package.glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                default = isinstance(node.value, ast.Name) and node.value.id == "LIMITS"
                (defaults if default else own).add(node.attr)
    settable = {a.name for a in attrs.fields(Limits)} - FIXED_LIMITS
    assert settable - own == set()
    # What a client says at first has no connection's limits yet; PostgreSQL's own machine says how
    # much disk it has.
    assert settable & defaults == {"client_hello_s", "disk_resume_bytes"}


def test_a_client_is_read_back(tmp_path: Path) -> None:
    made = config.ClientConfig(
        tmp_path, "FL-LAB", "hq:7443,wss://hq:443/", role="admin", tries=5, timeout_s=1.5
    )
    config.write_client_config(made)
    assert config.load_client_config(tmp_path) == made


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[client]\nclient_id = '../x'\naddress = 'h:1'\n", "client_id"),
        ("[client]\nclient_id = 'CON'\naddress = 'h:1'\n", "device name"),
        ("[client]\nclient_id = 'A'\n", "address"),
        ("[client]\nclient_id = 'A'\naddress = 'h:1'\nrole = 'root'\n", "client, admin"),
        (
            "[client]\nclient_id = 'A'\naddress = 'h'\n",
            "'h' is no address: host:port, or wss://host:port/",
        ),
        ("[client]\nclient_id = 'A'\naddress = 'h:1, wss://h/'\n", "'wss://h/' is no address"),
        ("[client]\nclient_id = 'A'\naddress = 'h:70000'\n", "no address"),
        ("[client]\nclient_id = 'A'\naddress = 'h:1'\n[retry]\ntries = 0\n", "at least 1"),
    ],
)
def test_a_wrong_client_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "client.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"client\.toml") as caught:
        config.load_client_config(tmp_path)
    assert says in str(caught.value)


def test_the_home_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIPHERBOX_HOME", str(tmp_path / "here"))
    assert config.default_home() == tmp_path / "here"
    monkeypatch.delenv("CIPHERBOX_HOME")
    assert config.default_home().name == ".cipherbox"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_key_has_its_length(tmp_path: Path, size: int) -> None:
    file = tmp_path / "database.key"
    file.write_bytes(bytes(size))
    file.chmod(0o600)
    with pytest.raises(
        ConfigError, match=rf"database\.key.*exactly 32 bytes, this file has {size}"
    ):
        config.secret_key(file)
    file.write_bytes(bytes(range(32)))
    assert config.secret_key(file) == bytes(range(32))


def test_a_secret_key_is_private_and_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        config.secret_key(tmp_path / "nowhere")
    file = tmp_path / "open.key"
    file.write_bytes(bytes(32))
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        config.secret_key(file)


def test_addresses() -> None:
    assert config.parse_listen("127.0.0.1:0, [::1]:7443,hq.example:1") == [
        ("127.0.0.1", 0),
        ("::1", 7443),
        ("hq.example", 1),
    ]
    assert config.parse_listen("") == []


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "cipherbox.toml").write_text(
        "[server]\nlisten = 7443\n[logging]\nlevel = 'LOUD'\nrotate = 'daily'\n[limits]\nqueues "
        "= 0\n[databse]\n"
    )
    with pytest.raises(ConfigError) as caught:
        config.load_server_config(tmp_path)
    text = str(caught.value)
    assert len(text.splitlines()) == 5
    for part in (
        "[server] listen is a text",
        "[logging] level is one of",
        "did you mean 'rotation'",
        "[limits] queues",
        "no table [databse]; did you mean 'database'",
    ):
        assert part in text


def test_a_mark_at_the_start_of_the_file_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "cipherbox.toml").write_text("\ufeff[server]\nname = 'HQ-2'\n", "utf-8")
    assert config.load_server_config(tmp_path).server.name == "HQ-2"
