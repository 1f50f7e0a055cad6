"""The command line: the only place that prints and the only one that starts trio.

A command's module is imported when the command runs, so that `version` and `--help` answer at once
and `serve` loads nothing that can open a message.

Map, written by `make generate`:

    agent             `agent`: the folder service of a lab or center machine.
    alerts            `alerts`: test the notification channels and list the alerts.
    audit             `audit`: HQ's signed log, verified entry by entry, or read.
    audit_lines       Entries of HQ's signed log, as lines for people and as events for programs.
    bench/            `bench`: this machine's speed at the whole job.
    ca/               `ca`: HQ's certificates and keys.
    chat              `chat`: write to one, several or all, line by line, and read what they write.
    chat_screen       The screen of a conversation, and the lines typed into it.
    clients           `clients`: the enrolled and connected clients, their rights and limits; cut a
                      connection.
    clock             `clock`: HQ's clock, and what an admin decides about it.
    commands          The table of commands, and names shared across the command line.
    completion_texts  `version` and `completion`, which need neither a network nor a home.
    config            `config`: the settings in force, and whether HQ could start with them.
    contacts          `contacts`: the senders this client accepts mail from.
    dead_letters      `dead`: list, show, redrive and drop dead letters.
    demo/             `demo`: the labs scenario with real processes.
    doctor/           `doctor`: what is wrong on this machine, and what to do about it.
    document          The parts of the manual that are generated from code: commands, settings, exit
                      codes, metrics.
    enrol             `enroll`, `join`, `approve` and `revoke`: tokens, enrolment and revocation.
    exits             Exit codes: one table for every command, and the default remedy of each kind
                      of error.
    home              The client of a command: its home, its keys, and work with an open connection.
    inbox             `inbox`: list, show, save and search received messages, with the refused and
                      the parked ones.
    inbox_lines       `inbox export`, `rotate` and `lock`: the readable lines and files in the
                      inbox.
    incoming          Directory and order of received files: options and notice of `receive`,
                      `fetch` and `agent`.
    install/          `install` and `uninstall`.
    keys/             `keys`: keys of this machine and of others.
    main              The command `cipherbox`, and the one place that turns errors into messages and
                      exit codes.
    man_page          The man page, made from the commands: `cipherbox manual --man`.
    manual            `manual`: list, search and show the package's pages, laid out and in a pager
                      on a terminal.
    operate           `reload` and `drain`: an admin's control of the running HQ, from any machine.
    options           Shared by several commands: option types, settings, and confirmation of
                      irreversible actions.
    outbox            `outbox`: the sealed messages and files of this machine, and their state.
    output            Output: results, warnings, errors, tables and records.
    page              `page`: this client in the browser of this machine; for an admin, the console
                      of HQ.
    page_layout       Layout of a manual page on a terminal: text and tables fit its width, code is
                      unchanged, so that it can be copied.
    password          The password of a client's keys: from a file, a systemd credential, or the
                      terminal without echo.
    pipe              `pipe`: standard input here to standard output there, and back.
    prove/            `prove`: load, kills and cut lines, then every confirmed message is looked
                      for.
    python            `python`: run programs with CipherBox's library, also where only the one file
                      is installed.
    receipt           `receipt`: a recipient's signed receipt, as a file that anyone can verify.
    receive           `receive` and `fetch`: store each message once in data/received_messages.jsonl
                      and each file once in one directory, then acknowledge.
    receive_exec      `--exec` of `receive` and `agent`: run the user's command for each message and
                      each file.
    route             `route`: the readers behind an exchange and key, and the sender's allow-list
                      for it.
    running           Starting trio: run an async function to its end, or until a signal stops it.
    scratch           `--database URL` of demo, bench and prove: a schema of PostgreSQL for one run,
                      dropped when the run is over.
    send              `send`: seal a text, files or standard input, send it to recipients or an
                      exchange, and wait for HQ's confirm.
    send_files        `send` for directories and for files sent in parts: selection, sending,
                      progress.
    serve             HQ's own two commands: `init` creates its directory, `serve` runs it.
    status            `status`: the state of a message, or of this client and HQ.
    stdout            Standard output that may be closed, full, or no longer read: work continues,
                      and the exit code reports it.
    store             `backup`, `restore` and `store`: back up, restore, copy and upgrade HQ's
                      store.
    tables            Tables that fit the terminal they are shown on.
    top               `top`: a live view of a running HQ, over the admin's own certificate.
    topology          `exchange`, `queue`, `binding`, `grant` and `grants`: routes and the rights on
                      them.
    witness           `witness`: cosign HQ's log, so that HQ cannot show different logs.
    wrapping          Word wrapping for a terminal.
"""
