"""`install` and `uninstall`.

Map, written by `make generate`:

    checks    What must be so before `install` touches anything; every problem is found in one go,
              with what to do about it.
    command   `install` and `uninstall`: the one file becomes a service or a command of this
              machine, and goes again.
    files     What an installed version has outside of its tree: units, man page, shell completion.
    places    Where `install` puts things: the system's directories as root, else the user's home.
    programs  Running programs of the system.
    schemas   Whether the program that is to be installed knows the data that is here: every
              database says its schema.
    service   What `install` and `uninstall` tell systemd, once everything is in place.
    source    What `install` copies into the tree of a version: what the one file holds, or the
              installed packages this program runs from (pip, pipx).
    steps     What `install`, its `--rollback` and `uninstall` do: steps that say what they do, and
              do nothing where it is done.
"""
