"""Secrets that systemd hands over: `credential:NAME` in a setting."""

from pathlib import Path

import pytest

from cipherbox import portable
from cipherbox.config import settings as config
from cipherbox.config.show import settings_text
from cipherbox.errors import ConfigError

KEY = bytes(range(32))


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    return directory


def hq(directory: Path, value: str) -> config.ServerConfig:
    (directory / "cipherbox.toml").write_text(f"[encryption]\nservice_key_file = '{value}'\n")
    return config.load_server_config(directory)


def test_a_key_is_found_among_the_credentials(tmp_path: Path, given: Path) -> None:
    loaded = hq(tmp_path, "credential:service.key")
    assert loaded.encryption.service_key_file == Path("credential:service.key")
    assert loaded.own_secrets == tmp_path / "secrets"
    assert config.load_server_config(config.write_server_config(loaded)) == loaded
    with pytest.raises(ConfigError, match=r"LoadCredential=service\.key:FILE"):
        config.secret_key(loaded.encryption.service_key_file)
    portable.write_private(given / "service.key", KEY)
    for mode in (0o400, 0o440, 0o600):
        (given / "service.key").chmod(mode)
        assert config.secret_key(loaded.encryption.service_key_file) == KEY
    for mode in (0o444, 0o460, 0o404):
        (given / "service.key").chmod(mode)
        with pytest.raises(ConfigError, match="other users may read it"):
            config.secret_key(loaded.encryption.service_key_file)
    (given / "service.key").chmod(0o600)
    (given / "service.key").write_bytes(KEY[:31])
    with pytest.raises(
        ConfigError, match=r"credential:service\.key: .*exactly 32 bytes, this file has 31"
    ):
        config.secret_key(loaded.encryption.service_key_file)


def test_the_group_may_read_nothing_but_credentials(tmp_path: Path, given: Path) -> None:
    for path in (tmp_path / "key", given / "below" / "key"):
        path.parent.mkdir(exist_ok=True)
        portable.write_private(path, KEY)
        path.chmod(0o440)
        with pytest.raises(ConfigError, match="chmod 600"):
            portable.read_private(path)


def test_without_systemd_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    loaded = hq(tmp_path, "credential:service.key")  # settings can be shown all the same
    assert 'service_key_file = "credential:service.key"' in settings_text(loaded)
    with pytest.raises(ConfigError, match="systemd handed over no credential") as caught:
        config.secret_key(loaded.encryption.service_key_file)
    assert "cipherbox manual operations" in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "../service.key", "/etc/shadow", "a/b", "a\\b"])
def test_a_credential_has_a_plain_name(tmp_path: Path, given: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"cipherbox\.toml: \[encryption\] service_key_file: .*plain name"
    ):
        hq(tmp_path, f"credential:{name}")


def test_hqs_own_keys_stay_beside_a_service_key_that_is_a_file(tmp_path: Path) -> None:
    assert config.ServerConfig(tmp_path).own_secrets == tmp_path / "secrets"
    assert hq(tmp_path, "/etc/keys/service.key").own_secrets == Path("/etc/keys")


def test_a_clients_password_file_is_read_back(tmp_path: Path) -> None:
    for file in (
        tmp_path / "below" / "password",
        tmp_path.parent / "password",
        Path("credential:lab"),
        None,
    ):
        made = config.ClientConfig(tmp_path, "FL-LAB", "hq:7443", password_file=file)
        config.write_client_config(made)
        assert config.load_client_config(tmp_path) == made
