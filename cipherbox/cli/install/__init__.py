"""`install` and `uninstall`.

Map, written by `make generate`:

    checks    Preconditions of `install`, checked before it changes anything: all problems with
              remedies.
    command   `install` and `uninstall`: make the one file a service or a command of this machine,
              and remove it.
    files     Files of an installed version outside of its tree: units, man page, shell completion.
    places    Target paths of `install`: the system's directories as root, else the user's home.
    programs  Running programs of the system.
    schemas   Check that the program to be installed can read this machine's data, by the schema of
              each database.
    service   The calls of `install` and `uninstall` to systemd, once everything is in place.
    source    Sources of an installed version's tree: the contents of the one file, or the installed
              packages that this program runs from (pip, pipx).
    steps     The idempotent steps of `install`, its `--rollback` and `uninstall`, each with a
              description.
"""
