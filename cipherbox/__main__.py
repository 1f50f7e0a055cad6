"""Entry of the zipapp, of `python -m cipherbox` and of the installed command."""

from cipherbox.cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
