"""The table of commands, and names shared across the command line."""

from __future__ import annotations

PASSWORD_FILE = "cipherbox.password_file"  # noqa: S105 - the key of the option in a context's meta
COMPLETE_VARIABLE = "_CIPHERBOX_COMPLETE"  # set by the shell's completion script

# section -> command -> (module below cipherbox.cli, attribute, one line)
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Headquarters": {
        "init": ("serve", "init", "Create HQ's data directory, its CA and the first admin."),
        "serve": ("serve", "serve", "Run HQ."),
        "enroll": ("enrol", "enroll", "Create a one-time token for a new client."),
        "approve": ("enrol", "approve", "Approve or reject a pending enrolment."),
        "revoke": ("enrol", "revoke", "Revoke a client and close its connections."),
        "grant": ("topology", "grant", "Grant or revoke a right."),
        "grants": ("topology", "grants", "List the granted rights."),
        "config": ("config", "config", "Show or check the settings."),
        "dead": ("dead_letters", "dead", "List, show, redrive and drop dead letters."),
        "audit": ("audit", "audit", "Verify or read HQ's signed log."),
        "witness": (
            "witness",
            "witness",
            "Cosign HQ's signed log, so that HQ cannot keep two of them.",
        ),
        "top": ("top", "top", "Show queues, rates, clients and alerts, live."),
        "reload": ("operate", "reload", "Make HQ reload its settings and certificates."),
        "drain": ("operate", "drain", "Let HQ finish its work and exit, for an upgrade."),
        "clock": ("clock", "clock", "Show HQ's clock; confirm it when HQ doubts it."),
        "ca": (
            "ca.command",
            "ca",
            "Show and renew HQ's certificates; manage an offline CA or an organization's.",
        ),
        "backup": ("store", "backup", "Back up HQ while it runs."),
        "restore": ("store", "restore", "Restore HQ from a backup and verify it."),
        "store": ("store", "store", "Copy HQ's store to another database, or upgrade it."),
    },
    "Every client": {
        "join": ("enrol", "join", "Enrol this machine with a token."),
        "send": ("send", "send", "Seal a message or file and send it."),
        "receive": ("receive", "receive", "Receive messages and files until stopped."),
        "fetch": ("receive", "fetch", "Receive what is waiting now, then exit."),
        "page": ("page", "page", "Open this client, or HQ's console, in the browser."),
        "chat": ("chat", "chat", "Exchange messages with clients, line by line."),
        "pipe": (
            "pipe",
            "pipe",
            "Connect standard input and output to another client's, like netcat.",
        ),
        "agent": ("agent", "agent", "Send from one folder and receive into another, continuously."),
        "status": (
            "status",
            "status",
            "Show where a message is, or the state of this client and HQ.",
        ),
        "inbox": (
            "inbox_lines",
            "inbox",
            "List, show, save and search what was received.",
        ),
        "outbox": ("outbox", "outbox", "List, retry and cancel what was sent."),
        "receipt": (
            "receipt",
            "receipt",
            "Export and verify proofs that a recipient opened a message.",
        ),
        "clients": (
            "clients",
            "clients",
            "List enrolled and connected clients; set roles and limits.",
        ),
        "alerts": (
            "alerts",
            "alerts",
            "Test the alerts, and list those that were sent.",
        ),
        "doctor": (
            "doctor.command",
            "doctor",
            "Diagnose problems on this machine and print remedies.",
        ),
    },
    "Routes and keys": {
        "exchange": ("topology", "exchange", "Declare, show, list and delete exchanges."),
        "queue": ("topology", "queue", "Declare, show, list, purge and delete queues."),
        "binding": ("topology", "binding", "Bind queues to exchanges."),
        "contacts": ("contacts", "contacts", "Set whose mail you accept."),
        "route": ("route", "route", "Set who may receive what you send to an exchange."),
        "keys": (
            "keys.command",
            "keys",
            "Manage your keys and password; compare and pin others' keys.",
        ),
    },
    "More": {
        "demo": ("demo.command", "demo", "Run the labs scenario on this machine."),
        "prove": (
            "prove.command",
            "prove",
            "Prove that nothing is lost or duplicated, whatever is killed.",
        ),
        "bench": ("bench.command", "bench", "Measure this machine's speed, end to end."),
        "manual": ("manual", "manual", "Read the manual."),
        "python": ("python", "python", "Run a Python program with CipherBox's library."),
        "install": (
            "install.command",
            "install",
            "Install or upgrade HQ, or a client, on this machine.",
        ),
        "uninstall": ("install.command", "uninstall", "Uninstall; data is kept."),
        "completion": (
            "completion_texts",
            "completion",
            "Print the completion script of a shell.",
        ),
        "version": ("completion_texts", "version", "Print the version."),
    },
}
