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
    commands          The table of commands, and names shared across the command line.
    completion_texts  `version` and `completion`, which need neither a network nor a home.
    config            `config`: the settings in force, and whether HQ could start with them.
    contacts          `contacts`: the senders this client accepts mail from.
    dead_letters      `dead`: list, show, redrive and drop dead letters.
    demo/             `demo`: the labs scenario with real processes.
    doctor/           `doctor`: what is wrong on this machine, and what to do about it.
    document          The parts of the manual that are generated from code: commands, settings, exit
                      codes, metrics.
    enrol             Who belongs to this HQ: tokens, joining, approval, revocation.
    exits             Exit codes: one table for every command, and what each kind of error advises
                      to do next.
    home              This command's client: its home, its keys, and a piece of work with it while
                      it is open.
    inbox             `inbox`: what was received here: list, show, save, search; what was refused,
                      and what waits for a person.
    inbox_lines       `inbox export`, `rotate` and `lock`: the readable lines and files of what was
                      received.
    incoming          Where what arrives is put: the options and the notice of `receive`, `fetch`
                      and `agent`.
    install/          `install` and `uninstall`.
    keys/             `keys`: keys of this machine and of others.
    main              The command `cipherbox`, and the one place where an error becomes words and an
                      exit code.
    man_page          The man page, made from the commands: `cipherbox manual --man`.
    manual            `manual`: list, search and show the pages in the package, on a terminal laid
                      out and in a pager.
    operate           What an admin asks of the running HQ as a service, from any machine: `reload`
                      and `drain`.
    options           What several commands share: option types, settings, and the question before
                      what is final.
    outbox            `outbox`: what this machine has sealed and what became of it.
    output            How things look on the screen.
    page_layout       A page of the manual on a terminal: text and tables as wide as it is, code as
                      it stands, so that it can be copied.
    password          The password of a client's keys, and where it comes from: a file, what systemd
                      hands over, or the terminal, where it is not shown.
    pipe              `pipe`: standard input here to standard output there, and back.
    prove/            `prove`: load, kills and cut lines, then every confirmed message is looked
                      for.
    python            `python`: programs with CipherBox's library where there is only the one file.
    receipt           `receipt`: a recipient's signed receipt, as a file that anyone can verify.
    receive           `receive` and `fetch`: each message once into data/received_messages.jsonl,
                      each file once into one directory, then acknowledged.
    receive_exec      `--exec` of `receive` and `agent`: a command of the user's for each message
                      and each file.
    route             `route`: the readers behind an exchange and key, and the sender's allow-list
                      for it.
    running           Where the command line starts trio: a piece of work, run to its end or until
                      it is stopped.
    scratch           `--database URL` of demo, bench and prove: a schema of PostgreSQL for one run,
                      dropped when the run is over.
    send              `send`: seal a text, files or standard input for recipients or for an
                      exchange, and wait for HQ's confirm.
    send_files        `send` for files that travel in parts, and for directories: what is taken,
                      progress, what is said at the end.
    serve             HQ's own two commands: `init` makes its directory, `serve` runs it.
    status            `status`: where a message is, in plain words; without one, how this client and
                      HQ are.
    stdout            Standard output that may be closed, full, or no longer read: that stops no
                      work, and has an exit code of its own.
    store             HQ's store as a whole: backups, restores, copies from one database to another,
                      upgrades.
    tables            Tables that fit the terminal they are shown on.
    top               `top`: a live view of a running HQ, over the admin's own certificate.
    topology          Exchanges, queues, bindings and the rights on them.
    witness           `witness`: cosign HQ's log, so that HQ cannot show different logs.
    wrapping          Lines of a terminal that break between words.
"""
