"""The software bill of materials (SBOM) beside the built file, as CycloneDX 1.6 in JSON.

It names each Python package with its wheels and their SHA-256, what that package says it is made of
(OpenSSL and crates, from the SBOM in its wheel), and who needs whom.  The same wheels give the same
bytes: there is no time in it, and its serial number follows from the built file.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any

Component = dict[str, Any]


def sbom(built: Path, version: str, wheels: list[Path]) -> str:
    """Return the SBOM of ``built``, which holds CipherBox ``version`` and ``wheels``."""
    components: dict[str, Component] = {}
    needs: dict[str, set[str]] = {}
    for wheel in sorted(set(wheels), key=lambda path: (path.name, str(path))):
        with zipfile.ZipFile(wheel) as archive:
            metadata = _metadata(archive)
            name = _normal(metadata["Name"])
            one = components.setdefault(name, _package(name, metadata))
            _add(one, _file(wheel))
            for inner in _inside(archive, name):
                _add(one, inner)
        needs.setdefault(name, set()).update(
            _normal(re.split(r"[^\w.-]", line, maxsplit=1)[0])
            for line in metadata.get_all("Requires-Dist", [])
        )
    digest = hashlib.sha256(built.read_bytes()).hexdigest()
    own = {
        "type": "application",
        "bom-ref": "cipherbox",
        "name": "cipherbox",
        "version": version,
        "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }
    refs = {name: one["bom-ref"] for name, one in components.items()}
    rows = [{"ref": "cipherbox", "dependsOn": sorted(refs.values())}]
    rows += [
        {"ref": refs[name], "dependsOn": sorted(refs[n] for n in needed & refs.keys() - {name})}
        for name, needed in sorted(needs.items())
    ]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}",
        "version": 1,
        "metadata": {"component": own},
        "components": [components[name] for name in sorted(components)],
        "dependencies": rows,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _metadata(archive: zipfile.ZipFile) -> Message:
    [name] = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
    return BytesParser().parsebytes(archive.read(name), headersonly=True)


def _normal(name: str) -> str:
    """Return a package's name as every index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _package(name: str, metadata: Message) -> Component:
    purl = f"pkg:pypi/{name}@{metadata['Version']}"
    one = {"type": "library", "bom-ref": purl, "name": name, "version": metadata["Version"]}
    if expression := metadata["License-Expression"]:
        one["licenses"] = [{"expression": expression}]
    elif (text := metadata["License"] or "") and "\n" not in text:
        one["licenses"] = [{"license": {"name": text}}]
    return one | {"purl": purl, "components": []}


def _file(wheel: Path) -> Component:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {
        "type": "file",
        "name": wheel.name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
    }


def _inside(archive: zipfile.ZipFile, name: str) -> Iterator[Component]:
    """Yield what a wheel's own SBOMs (PEP 770) name, without what only describes the build."""
    for path in sorted(archive.namelist()):
        if re.fullmatch(r"[^/]+\.dist-info/sboms/.+\.json", path):
            for found in json.loads(archive.read(path)).get("components", []):
                kept = ("type", "name", "version", "licenses", "hashes", "purl")
                one = {key: found[key] for key in kept if key in found}
                if _normal(one["name"]) != name:  # auditwheel names the wheel itself
                    yield one


def _add(package: Component, part: Component) -> None:
    if part not in package["components"]:
        package["components"].append(part)
