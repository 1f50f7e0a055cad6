"""The page: this client in the browser of its own machine, on loopback.

Map, written by `make generate`:

    console    The console of an admin's home: HQ at a glance, who gets what, clients, dead letters,
               HQ's certificates and clock, its signed log.
    desk       The desk behind the page: an open client, what its home holds, and a wake-up when
               that changes.
    door       The door of the page: where it is, who may enter, and until when.
    drawing    Draw the manual's diagrams as SVG: the part of Mermaid's language that the manual
               uses.
    guard      The guard in front of every request.
    handbook   The manual in the page: its Markdown as HTML, raw HTML in it shown as text.
    history    HQ's last hour and day as plots: sampled while the page of an admin runs, kept in its
               memory.
    live       Server-sent events: a line whenever something changed, upon which the page draws
               itself anew.
    messages   Received messages: the list by time, by person, by search; one message; its file.
    page       The page: its client, its door and its server, for as long as `run` runs.
    people     People: whose keys were compared, comparing them by telephone or QR code, and
               conversations.
    proof      Proof: export the signed receipts of a message, and verify one that somebody sent.
    sent       What this home sent: the list with the state of each for each recipient, and one in
               full.
    serving    Serve the page with Hypercorn on trio: one listener on loopback, a bounded number of
               connections.
    site       The page's site: its routes, and how an answer is drawn.
    streaming  Answers that are sent while they are made, and end as soon as the browser has gone.
    trouble    Trouble: what was refused, what is parked or stuck, and what `doctor` finds, each
               with an act.
    view       One request as its handler sees it: the desk, the form, the language, and how to
               answer.
    words      The page's texts in other languages: a file for each, from the English text to its
               own.
    writing    Write: a message to one, several, everybody or a route, and files of any size.
"""
