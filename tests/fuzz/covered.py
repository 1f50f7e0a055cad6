"""One target under atheris, guided by coverage: python -m tests.fuzz.covered NAME [options of
libFuzzer] [corpus].
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["cipherbox"]):
    from tests.fuzz.check import RuleBroken, check
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name = sys.argv.pop(1)
    target = TARGETS[name]

    def once(data: bytes) -> None:
        try:
            check(target, data)
        except RuleBroken as broken:
            print(f"kept as {broken.keep()}", file=sys.stderr)
            raise

    atheris.Setup(sys.argv, once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
