"""The allow-list file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cipherbox.client.publishing.allow_list import AllowList
from cipherbox.errors import ConfigError, InvalidRequest, NotAllowed


def test_lists_by_exchange(tmp_path: Path) -> None:
    lists = AllowList(tmp_path)
    assert lists.entries() == {}
    with pytest.raises(NotAllowed, match="CA-RC"):
        lists.check("labs", ["CA-RC"])
    lists.allow("labs", ["CA-RC", "SF-RC"])
    lists.allow("labs", ["NY-RC"])
    lists.check("labs", ["CA-RC", "NY-RC"])
    assert AllowList(tmp_path).entries() == {"labs": ["CA-RC", "NY-RC", "SF-RC"]}
    with pytest.raises(NotAllowed, match="nothing was sent"):
        lists.check("other", ["CA-RC"])
    lists.remove("labs", ["NY-RC"])
    with pytest.raises(NotAllowed, match="NY-RC"):
        lists.check("labs", ["CA-RC", "NY-RC"])
    lists.allow("labs", None)
    lists.check("labs", ["ANYBODY"])
    with pytest.raises(InvalidRequest, match="anybody"):
        lists.remove("labs", ["CA-RC"])
    lists.remove("labs", None)
    assert lists.entries() == {}


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"labs": "CA-RC"}', '{"labs": ["not an id!"]}', '{"labs": [1, {}]}']
)
def test_a_damaged_file_permits_nobody_and_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "allow.json").write_text(text)
    with pytest.raises(ConfigError, match=r"allow\.json"):
        AllowList(tmp_path).check("labs", ["CA-RC"])


def test_only_client_ids_are_permitted(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        AllowList(tmp_path).allow("labs", ["../x"])
