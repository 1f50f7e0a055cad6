"""The table of commands, and what the parts of the command line call the same."""

from __future__ import annotations

PASSWORD_FILE = "cipherbox.password_file"  # noqa: S105 - where a context's meta has the option
COMPLETE_VARIABLE = "_CIPHERBOX_COMPLETE"  # set by the shell's completion script

# section -> command -> (module below cipherbox.cli, attribute, one line)
COMMANDS: dict[str, dict[str, tuple[str, str, str]]] = {
    "Headquarters": {
        "init": ("serve", "init", "Make HQ's data directory, its CA and the first admin."),
        "serve": ("serve", "serve", "Run HQ."),
        "enroll": ("enrol", "enroll", "Make a one-time token for a new client."),
        "approve": ("enrol", "approve", "Approve or reject a pending enrolment."),
        "revoke": ("enrol", "revoke", "Revoke a client and cut its connections."),
        "grant": ("topology", "grant", "Give or take a right."),
        "grants": ("topology", "grants", "List who has which right."),
        "config": ("config", "config", "Show the settings, or check whether HQ could start."),
        "dead": ("dead_letters", "dead", "Dead letters: list, show, send again, drop."),
        "audit": ("audit", "audit", "Verify or read HQ's signed log."),
        "witness": (
            "witness",
            "witness",
            "Cosign HQ's signed log, so that nobody is shown another one.",
        ),
        "top": ("top", "top", "Watch queues, rates, clients and alerts."),
        "reload": ("operate", "reload", "Let HQ read settings and certificates again."),
        "drain": ("operate", "drain", "Let HQ finish and end, for an upgrade."),
        "ca": (
            "ca.command",
            "ca",
            "Show HQ's certificates; renew them; an offline CA, or an organization's.",
        ),
        "backup": ("store", "backup", "Back up everything HQ is, while it runs."),
        "restore": ("store", "restore", "Restore HQ from a backup and verify it."),
        "store": ("store", "store", "Copy HQ's store to another database; upgrade it."),
    },
    "Every client": {
        "join": ("enrol", "join", "Enrol this machine with a token."),
        "send": ("send", "send", "Seal a message or file and send it."),
        "receive": ("receive", "receive", "Receive, open and acknowledge until stopped."),
        "fetch": ("receive", "fetch", "Take what waits now, then stop."),
        "chat": ("chat", "chat", "Write to somebody, line by line, and read what they write."),
        "pipe": ("pipe", "pipe", "Standard input here to standard output there: netcat."),
        "agent": ("agent", "agent", "Send from one folder and receive into another, continuously."),
        "status": ("status", "status", "Where is my message?  And how is HQ?"),
        "inbox": (
            "inbox_lines",
            "inbox",
            "What was received here: list, show, save, search; refused, parked.",
        ),
        "outbox": ("outbox", "outbox", "What was sent from here and is under way; retry, cancel."),
        "receipt": ("receipt", "receipt", "Proof that a recipient opened a message."),
        "clients": (
            "clients",
            "clients",
            "Who is enrolled and connected; roles; cut a connection.",
        ),
        "alerts": (
            "alerts",
            "alerts",
            "Who is told when something is wrong: test it, list what was told.",
        ),
        "doctor": (
            "doctor.command",
            "doctor",
            "Look for what is wrong on this machine and say what to do.",
        ),
    },
    "Routes and keys": {
        "exchange": ("topology", "exchange", "Declare, show, list and delete exchanges."),
        "queue": ("topology", "queue", "Declare, show, list, purge and delete queues."),
        "binding": ("topology", "binding", "Lead routing keys into queues."),
        "contacts": ("contacts", "contacts", "Whom you take mail from."),
        "route": ("route", "route", "Who may receive what you send to an exchange."),
        "keys": (
            "keys.command",
            "keys",
            "Keys, yours and others': list, compare, pin; your password.",
        ),
    },
    "More": {
        "demo": ("demo.command", "demo", "Play the labs scenario on this machine."),
        "prove": (
            "prove.command",
            "prove",
            "Prove that nothing is lost or doubled, whatever is killed.",
        ),
        "bench": ("bench.command", "bench", "Measure how fast this machine does the whole job."),
        "manual": ("manual", "manual", "Read the manual."),
        "python": ("python", "python", "Run a program of yours with CipherBox's library."),
        "install": (
            "install.command",
            "install",
            "Install or upgrade HQ, or a client, on this machine.",
        ),
        "uninstall": ("install.command", "uninstall", "Remove it again; data stays."),
        "completion": (
            "completion_texts",
            "completion",
            "Print the shell's completion of these commands.",
        ),
        "version": ("completion_texts", "version", "Print the version."),
    },
}
