"""The tables of the manual page `protocol`, made from the table of frames and the tree of errors.

`make generate` writes them between the page's markers; a test compares.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from cipherbox.errors import BY_CODE, CipherBoxError, summary
from cipherbox.wire.fields import RECORDS, TABLE, FieldSpec, specs_of

PAGE = Path(__file__).parent.parent / "manual" / "protocol.md"
_SENDERS = {
    "client": "a client",
    "server": "HQ",
    "both": "either side",
    "anonymous": "any connection, even one without a certificate",
    "admin": "an admin",
}


def _fields(fields: tuple[FieldSpec, ...]) -> list[str]:
    rows = ["| field | type | meaning |", "| --- | --- | --- |"]
    rows += [f"| {f.name} | {f.kind.title} | {f.doc} |" for f in fields]
    return [*rows, ""]


def tables() -> dict[str, str]:
    """Return each table as Markdown by its marker: `frames`, `records`, `errors`."""
    out: list[str] = []
    for kind, spec in sorted(TABLE.items()):
        answer = f" Response: {spec.answer}." if spec.answer else ""
        out += [
            f"### 0x{kind:02X} {spec.name}",
            "",
            f"{spec.doc} Sent by {_SENDERS[spec.sender]}.{answer}",
            "",
        ]
        out += _fields(spec.fields)
    records: list[str] = []
    for name, cls in RECORDS.items():
        doc = inspect.cleandoc(cls.__doc__ or "")
        records += [f"### {name}", "", doc, "", *_fields(specs_of(cls))]
    errors = [
        "| code | name | meaning | retry | connection ends |",
        "| --- | --- | --- | --- | --- |",
    ]
    for code, kind_of_error in sorted(BY_CODE.items()):
        errors.append(_error(code, kind_of_error))
    return {
        "frames": "\n".join(out).strip(),
        "records": "\n".join(records).strip(),
        "errors": "\n".join(errors),
    }


def _error(code: int, error: type[CipherBoxError]) -> str:
    flags = ["yes" if flag else "no" for flag in (error.retryable, error.closes)]
    return f"| 0x{code:04X} | {error.name} | {summary(error)} | {' | '.join(flags)} |"


def refreshed(page: str) -> str:
    """Return the page with its tables made from the code as it is now."""
    for name, text in tables().items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        head, rest = page.split(begin)
        _, tail = rest.split(end)
        page = f"{head}{begin}\n{text}\n{end}{tail}"
    return page


def main() -> None:
    """Write the page with its current tables."""
    PAGE.write_text(refreshed(PAGE.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
