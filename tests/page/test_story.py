"""What people do in the page, over a real HQ: write, read, show and hide, compare, prove."""

from __future__ import annotations

import io
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio

from cipherbox.apps.page import desk, door, messages
from cipherbox.apps.page.view import Finding
from cipherbox.apps.page.words import translator
from cipherbox.cli.doctor.findings import Finding as Found
from cipherbox.cli.doctor.findings import findings_of
from cipherbox.client.inbox import encrypted_lines
from cipherbox.client.inbox.encrypted_lines import START
from cipherbox.client.keys.comparing import scan_text
from cipherbox.client.keys.local_key import put_local_key
from cipherbox.client.outbox.transfers import Transfers
from cipherbox.client.publishing import sealer
from cipherbox.client.publishing.files import send_directory
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.bundle import fingerprint
from cipherbox.envelope.layout import split
from cipherbox.errors import CredentialsError, StoreLocked, TimedOut, summary
from cipherbox.readable import Sentence
from cipherbox.sealing import key_file
from tests.client.real_hq import RealHq
from tests.page.web import Answer, Web, page_of

PASSWORD = "correct horse battery staple 17"


def shows(*words: str) -> Any:
    return lambda page: all(word in page.words for word in words)


async def write(web: Web, to: list[str], text: str) -> str:
    """Write a message in the page; return the path of its own page."""
    answer = await web.post("/write", {"to": to, "text": text})
    assert answer.status == 303, answer.words
    return answer.headers["location"].partition("?")[0]


async def test_a_message_is_written_read_and_signed_for(lab: Web, center: Web) -> None:
    await lab.until("/people", shows("CA-RC"))
    sent = await write(lab, ["CA-RC"], "Sample 17 <b>is</b> ready")
    page = await center.until("/messages", shows("Show the text"))
    assert "signature verified" in page.words
    assert "Sample 17 &lt;b&gt;is&lt;/b&gt; ready" in page.text
    assert "<details open" not in page.text
    assert re.search(r'<details class="text" id="[^"]+">', page.text)  # hidden until it is shown
    await center.post("/settings", {"shown": "yes", "language": "", "theme": "dark"})
    page = await center.get("/messages")
    assert re.search(r'<details class="text" id="[^"]+" open>', page.text)
    assert 'data-theme="dark"' in page.text
    page = await lab.until(sent, shows("✓ opened", "entry"))
    page = await center.until("/messages", shows("Receipt signed"))
    (own,) = re.findall(r'class="when" href="([^"]+)"', page.text)
    assert "ed25519" in (await center.get(own)).words
    conversation = (await center.get("/people/FL-LAB")).words
    assert "Show the text" in conversation


async def test_one_message_to_everybody(hq: RealHq, lab: Web, center: Web) -> None:
    await hq.join("SF-RC")
    async with page_of(hq.home("SF-RC")) as third:
        await lab.until("/people", shows("CA-RC", "SF-RC"))
        sent = await write(lab, ["*"], "To all")
        for web in (center, third):
            await web.until("/messages", lambda page: "To all" in page.text)
        await lab.until(sent, shows("CA-RC: ✓ opened", "SF-RC: ✓ opened"))
        assert "admin" not in (await lab.get("/write")).words  # who has no keys is no recipient


async def test_a_tampered_message_alerts(
    hq: RealHq, center: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = sealer.seal

    def forged(*args: Any, **kwargs: Any) -> Any:
        good = seal(*args, **kwargs)
        raw, at = good.raw, split(good.raw).signatures_at + 5
        return attrs.evolve(good, raw=raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])

    with monkeypatch.context() as patch:
        patch.setattr(sealer, "seal", forged)
        async with hq.client("FL-LAB") as client:
            await client.publish("changed on the way", to=["CA-RC"], wait=False)
            page = await center.until("/messages", shows("it is not what its sender sealed"))
    assert 'class="note bad" role="alert"' in page.text
    assert "Show the text" not in page.words
    page = await center.get("/trouble")
    assert 'class="card forged"' in page.text
    assert "signature invalid" in page.words
    assert (await center.post("/trouble/seen")).status == 303
    assert "not what its sender sealed" not in (await center.get("/messages")).words
    assert "signature invalid" in (await center.get("/trouble")).words  # the list keeps it


async def test_keys_under_a_password_are_opened_in_the_page(
    hq: RealHq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_file, "MEMORY_KIB", 64)
    monkeypatch.setattr(key_file, "PASSES", 1)
    monkeypatch.setattr(door, "WRONG_S", 0.0)
    home = hq.home("CA-RC")
    put_local_key(home, (home / "local.key").read_bytes(), PASSWORD.encode())
    async with hq.client("FL-LAB") as client:
        await client.publish("for those with the password", to=["CA-RC"])
    async with page_of(home) as web:
        assert (await web.get("/enter")).text.count("FL-LAB") == 0
        assert (await web.enter("wrong")).status == 401
        assert (await web.enter(PASSWORD)).status == 200
        await web.until("/messages", lambda page: "for those with the password" in page.text)
        # what is uploaded is encrypted on the disk, too
        await web.until("/people", shows("FL-LAB"))
        secret = b"nobody else reads this " * 4000
        answer = await web.ask("PUT", "/upload?to=FL-LAB&path=secret.txt", secret)
        assert answer.status == 200, answer.text
        on_disk = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
        assert secret[:40] not in on_disk


async def test_files_of_any_size_are_uploaded_sent_and_saved(lab: Web, center: Web) -> None:
    await lab.until("/people", shows("CA-RC"))
    content = random.Random(42).randbytes(4_800_000)
    for path, data in (("run 42/<b>.tif", content), ("empty.txt", b"")):
        answer = await lab.ask("PUT", f"/upload?to=CA-RC&path={path.replace(' ', '%20')}", data)
        assert (answer.status, orjson.loads(answer.body)) == (200, {"size": len(data)})
    await lab.until("/sent", shows("run 42/<b>.tif", "✓ opened", "empty.txt"))
    page = await center.until("/messages", lambda page: page.text.count("/content?") == 2)
    assert "_b_.tif" in page.words
    links = re.findall(r'href="(/messages/[^"]+/content[^"]+)"', page.text)
    answers = [await center.get(link) for link in links]
    assert {len(one.body) for one in answers} == {len(content), 0}
    # a browser that goes away in the middle of a download, and of the events
    for path in (*links, "/live"):
        stream = await trio.open_tcp_stream("127.0.0.1", center.port)
        async with stream:
            head = f"GET {path} HTTP/1.1\r\nHost: {center.host}\r\n"
            cookie = f"Cookie: {door.COOKIE}={center.cookie}\r\n\r\n"
            await stream.send_all((head + cookie).encode())
            await stream.receive_some(100)
    inside = center.page.site.desk
    assert inside is not None
    with trio.fail_after(60):
        while inside.listeners:
            await trio.sleep(0.02)
    for one in answers:
        assert one.headers["content-type"] == "application/octet-stream"
        assert one.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
        assert one.body in (content, b"")


async def test_an_upload_that_breaks_off_leaves_nothing(lab: Web, hq: RealHq) -> None:
    await lab.until("/people", shows("CA-RC"))
    head = (
        f"PUT /upload?to=CA-RC&path=half.bin HTTP/1.1\r\nHost: {lab.host}\r\n"
        f"Origin: {lab.origin}\r\nCookie: {door.COOKIE}={lab.cookie}\r\n"
        "Content-Length: 5000000\r\n\r\n"
    ).encode()
    stream = await trio.open_tcp_stream("127.0.0.1", lab.port)
    async with stream:
        await stream.send_all(head + bytes(2_000_000))
        copies = hq.home("FL-LAB") / "outbox" / "copies"
        with trio.fail_after(60):
            while not copies.exists() or not any(copies.iterdir()):
                await trio.sleep(0.02)
    with trio.fail_after(60):
        while any(copies.iterdir()):
            await trio.sleep(0.02)
    assert "half.bin" not in (await lab.get("/sent")).words


async def test_an_upload_that_cannot_be_sent_says_why(lab: Web) -> None:
    await lab.until("/people", shows("CA-RC"))
    for query, why in (
        ("to=CA-RC&path=", "no name"),
        ("to=CA-RC&path=../../x", "no name"),
        ("path=x", "nobody is chosen"),
        ("to=NOBODY-HERE&path=x", "NOBODY-HERE"),
        ("to=CA-RC&exchange=x&path=x", "either people or a route"),
    ):
        answer = await lab.ask("PUT", f"/upload?{query}", b"x" * 100)
        assert answer.status == 400
        found = orjson.loads(answer.body)
        assert why in f"{found['error']}; {found['remedy']}"


async def test_a_received_directory_is_saved_as_one_zip(
    hq: RealHq, center: Web, tmp_path: Path
) -> None:
    folder = tmp_path / "run-42"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("first")
    (folder / "deep" / "b.txt").write_text("second" * 1000)
    async with hq.client("FL-LAB") as client:
        await send_directory(client, folder, ["CA-RC"])
    page = await center.until("/messages", shows("run-42"))
    (link,) = re.findall(r'href="(/messages/[^"]+/content[^"]+)"', page.text)
    answer = await center.get(link)
    assert answer.headers["content-disposition"].endswith("run-42.zip")
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert {name: len(archive.read(name)) for name in archive.namelist()} == {
            "run-42/a.txt": 5,
            "run-42/deep/b.txt": 6000,
        }


async def test_what_cannot_be_sent_keeps_its_text(lab: Web) -> None:
    for fields, why in (
        ({"to": ["NOBODY"], "text": "a long letter"}, "NOBODY"),
        ({"text": "a long letter"}, "nobody is chosen"),
        ({"to": ["CA-RC"], "text": " "}, "there is no text"),
        ({"exchange": "no_such", "key": "x", "text": "a long letter"}, "no_such"),
    ):
        answer = await lab.post("/write", fields)
        assert answer.status == 400
        assert why in answer.words
        assert str(fields["text"]).strip() in answer.text


async def test_errors_are_told_in_german(lab: Web) -> None:
    answer = await lab.post("/write", {"text": "x"}, accept_language="de")
    assert "niemand ist ausgewählt" in answer.words
    assert "wählen Sie mindestens einen Empfänger" in answer.words
    fields = {"exchange": "no_such", "key": "x", "text": "x"}
    answer = await lab.post("/write", fields, accept_language="de")
    assert "Das gibt es nicht, oder es ist für Sie nicht sichtbar." in answer.words
    assert re.search(r'<span lang="en">no exchange &#39;no_such&#39;', answer.text)
    answer = await lab.ask("PUT", "/upload?path=x", b"x", accept_language="de-AT")
    assert orjson.loads(answer.body)["error"] == "niemand ist ausgewählt"
    assert "diese Seite gibt es nicht" in (await lab.get("/nowhere", accept_language="de")).words


async def test_by_a_route(hq: RealHq, lab: Web, center: Web) -> None:
    async with hq.admin() as admin:
        await admin.declare_exchange("lab_reports", "topic")
        await admin.declare_queue("reports", owner="CA-RC", readers=["CA-RC"])
        await admin.bind("lab_reports", "reports", "labs.#")
        await admin.grant("FL-LAB", "publish", "lab_reports")
    fields = {"exchange": "lab_reports", "key": "labs.fl", "text": "by route"}
    answer = await lab.post("/write", fields)
    assert answer.status == 400  # nobody was allowed to read what goes there
    assert "CA-RC" in answer.words
    lab.page.site.desk.client.allow.allow("lab_reports", ["CA-RC"])  # type: ignore[union-attr]
    assert (await lab.post("/write", fields)).status == 303
    await lab.until("/sent", shows("lab_reports labs.fl"))


async def test_while_hq_is_away_messages_wait_and_go_out_later(
    hq: RealHq, lab: Web, center: Web
) -> None:
    await lab.until("/people", shows("CA-RC"))
    await write(lab, ["CA-RC"], "first")
    await center.until("/messages", lambda page: "first" in page.text)
    await hq.stop()
    await lab.until("/sent", shows("HQ is unreachable"))
    sent = await write(lab, ["CA-RC"], "later")
    assert "sealed" in (await lab.get(sent)).words
    await hq.start()
    await center.until("/messages", lambda page: "later" in page.text)
    await lab.until(sent, shows("✓ opened"))


async def test_people_compare_by_number_and_by_code(lab: Web, center: Web) -> None:
    page = await lab.until("/people", shows("CA-RC"))
    assert "no contact yet" in page.words or "not compared yet" in page.words
    own = center.page.site.desk.client.home.identity  # type: ignore[union-attr]
    assert own is not None
    assert own.bundle is not None
    number = fingerprint(own.bundle)
    assert number in (await center.get("/people")).words
    assert "<svg" in (await center.get("/people")).text
    wrong = number[:-1] + ("1" if number[-1] != "1" else "2")
    answer = await lab.post("/people/CA-RC/compare", {"heard": wrong})
    assert (answer.status, "send nothing" in answer.words) == (400, True)
    assert "✓ compared" not in (await lab.get("/people")).words
    other = scan_text(own.bundle).replace("CA-RC", "NY-RC")
    assert (await lab.post("/people/CA-RC/compare", {"heard": other})).status == 400
    answer = await lab.post("/people/CA-RC/compare", {"heard": scan_text(own.bundle)})
    assert answer.status == 303, answer.words
    assert "✓ compared" in (await lab.get("/people")).words


async def test_changed_keys_raise_an_alarm_until_they_are_compared(hq: RealHq, lab: Web) -> None:
    await lab.until("/people", shows("CA-RC"))
    async with hq.client("FL-LAB") as client:
        await client.bundles(["CA-RC"])
    await write(lab, ["CA-RC"], "to the old keys")
    for path in hq.home("CA-RC").iterdir():
        if path.is_file():
            path.unlink()
    await hq.join("CA-RC", replace=True)
    page = await lab.until("/people", shows("keys changed: compare them"))
    assert "The keys of CA-RC changed" in page.words
    assert "Nothing is sealed for CA-RC" in page.words
    assert (await lab.post("/write", {"to": ["CA-RC"], "text": "secret"})).status == 400
    page = await lab.get("/people/CA-RC")
    assert "the old key did not sign the new one" in page.words
    async with hq.client("CA-RC") as center:
        assert center.home.identity is not None
        assert center.home.identity.bundle is not None
        number = fingerprint(center.home.identity.bundle)
    assert (await lab.post("/people/CA-RC/compare", {"heard": number})).status == 303
    assert "The keys of CA-RC changed" not in (await lab.get("/people")).words
    await write(lab, ["CA-RC"], "to the new keys")


async def test_a_receipt_is_exported_and_verified(lab: Web, center: Web) -> None:
    await lab.until("/people", shows("CA-RC"))
    sent = await write(lab, ["CA-RC"], "to be proven")
    await center.until("/messages", lambda page: "to be proven" in page.text)
    await lab.until(sent, shows("Save the receipt"))
    receipt = await lab.get(f"{sent}/receipt/CA-RC")
    assert receipt.headers["content-disposition"].endswith("-CA-RC.receipt.json")
    answer = await center.post("/proof", {"receipt": receipt.text})
    assert "The receipt is genuine." in answer.words
    assert "FL-LAB" in answer.words
    broken = receipt.text.replace("CA-RC", "CA-RD")
    answer = await center.post("/proof", {"receipt": broken})
    assert answer.status == 400
    assert "genuine" not in answer.words
    assert (await lab.get(f"{sent}/receipt/SF-RC")).status == 404


async def test_trouble_has_its_acts(hq: RealHq, lab: Web, tmp_path: Path) -> None:
    async with hq.client("CA-RC") as center:

        def never(handled: Any, tx: Any) -> None:
            raise ValueError("no segment PID")

        await lab.until("/people", shows("CA-RC"))
        await write(lab, ["CA-RC"], "bad one")
        await center.process(never, tries=1, idle_s=2.0)

    def diagnose(home: Any) -> list[Finding]:
        text = Sentence("{size} free at {place}", size="3 MB", place="/{x}")
        return [
            Found("wrong", "disk", text, "make room"),
            *findings_of("network", TimedOut("10.0.0.1 does not answer")),
        ]

    async with page_of(hq.home("CA-RC"), diagnose=diagnose) as web:
        page = await web.get("/trouble")
        assert "no segment PID" in page.words
        assert (await web.post("/trouble/retry", {"message_id": "no id"})).status == 400
        assert (await web.post("/trouble/retry", {"message_id": ""})).status == 303
        assert "no segment PID" not in (await web.get("/trouble")).words
        page = await web.post("/trouble")
        assert "3 MB free at /{x}" in page.words
        assert "What to do: make room" in page.words
        page = await web.post("/trouble", Accept_Language="de")
        assert "✗ Festplatte 3 MB frei bei /{x}" in page.words
        kind = translator("de")(summary(TimedOut))
        assert f"✗ Netz {kind} 10.0.0.1 does not answer" in page.words
    await lab.until("/sent", shows("✗ refused", "handler failed"))


async def test_cancelling_and_sending_again(hq: RealHq, lab: Web) -> None:
    await lab.until("/people", shows("CA-RC"))
    first = await write(lab, ["CA-RC"], "so that the keys are known")
    await lab.until("/sent", shows("with HQ"))
    async with hq.client("CA-RC") as other, other.consume_unopened():
        await lab.until(first, shows("↑ with HQ", "↓ delivered"))  # and not opened yet
    await hq.stop()
    sent = await write(lab, ["CA-RC"], "a mistake")
    page = await lab.get(sent)
    assert "Not send it?" in page.words
    assert (await lab.post(f"{sent}/cancel")).status == 303
    assert "– cancelled" in (await lab.get(sent)).words
    await hq.start()


async def test_live_changes_arrive_as_events(hq: RealHq, lab: Web) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", lab.port)
    request = (
        f"GET /live HTTP/1.1\r\nHost: {lab.host}\r\nCookie: {door.COOKIE}={lab.cookie}\r\n"
        "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nX-Live: 1\r\n\r\n"
    )
    async with stream:
        await stream.send_all(request.encode())
        seen = b""
        with trio.fail_after(60):
            while b"data: changed\n\n" not in seen:
                seen += await stream.receive_some()
            assert b"text/event-stream" in seen
            seen = b""
            async with hq.client("CA-RC") as client:
                await client.publish("news", to=["FL-LAB"])
            while b"data: changed" not in seen:
                seen += await stream.receive_some()
            assert b"news" not in seen  # what changed is asked for, not pushed
            await lab.post("/lock")
            lab.page.site.desk.changed.notify()  # type: ignore[union-attr]
            while b"data: locked" not in seen:
                seen += await stream.receive_some()


async def test_another_receiver_of_the_home_is_left_alone(hq: RealHq) -> None:
    async with hq.client("CA-RC") as client:
        receiver = Receiver(client)
        async with trio.open_nursery() as nursery:
            await nursery.start(receiver.keep)
            async with page_of(hq.home("CA-RC"), client=client) as web:
                async with hq.client("FL-LAB") as lab:
                    await lab.publish("seen by both", to=["CA-RC"])
                await web.until("/messages", lambda page: "seen by both" in page.text)
            nursery.cancel_scope.cancel()
    assert receiver.received == 1


async def test_one_page_for_each_home(hq: RealHq, lab: Web) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with page_of(hq.home("FL-LAB")):
            pass
    assert caught.value.split(StoreLocked)[0] is not None


async def test_the_list_is_paged_and_searched(hq: RealHq, center: Web) -> None:
    async with hq.client("FL-LAB") as client:
        await client.publish([f"value {number}" for number in range(120)], to=["CA-RC"])
    page = await center.until("/messages", shows("Show the text"))
    seen: list[int] = []
    path: str | None = "/messages"
    while path is not None:
        page = await center.get(path)
        seen += [int(number) for number in re.findall(r"value (\d+)<", page.text)]
        older = re.search(r'href="(/messages\?[^"]*before=[^"]+)"', page.text)
        path = older[1].replace("&amp;", "&") if older else None
    assert seen == list(range(119, -1, -1))
    page = await center.get("/messages?q=VALUE+11")
    assert re.findall(r"value (\d+)<", page.text) == [
        *map(str, range(119, 109, -1)),
        "11",
    ]
    assert "Nothing matches." in (await center.get("/messages?q=nowhere")).words
    assert "Nothing matches." in (await center.get("/messages?sender=SF-RC")).words
    inbox = center.page.site.desk
    assert inbox is not None
    first = await inbox.inbox(messages.page_of, START, "", "value", 7)
    following = await inbox.inbox(messages.page_of, first.following, "", "value", 7)
    texts = [one.text for one in (*first.rows, *following.rows)]
    assert texts == [f"value {number}" for number in range(119, 105, -1)]


async def test_strange_paths_are_answers(lab: Web) -> None:
    for path in (
        "/messages/not-an-id",
        "/messages/0199f0a2-7c31-7d05-9c4e-1b2a00000000",
        "/sent/not-an-id",
        "/sent/0199f0a2-7c31-7d05-9c4e-1b2a00000000",
        "/manual/no-such",
        "/console",
        "/nowhere",
        "/people/no%20such!",
        "/messages?before=x.y",
        f"/messages?before={'9' * 40}.1",
        "/sent?before=1",
    ):
        answer: Answer = await lab.get(path)
        assert answer.status in (200, 400, 404), path
        assert "Internal" not in answer.words
    assert (await lab.get("/sent?said=%3Cscript%3E")).text.count("<script>") == 0


async def test_the_manual_is_in_the_page(lab: Web) -> None:
    page = await lab.get("/manual?q=fingerprint")
    assert "howto-keys" in page.words
    page = await lab.get("/manual/page")
    assert "<h1>The page</h1>" in page.text
    assert "<table>" in page.text
    assert "style=" not in page.text


async def test_transfers_are_resumed(hq: RealHq, tmp_path: Path) -> None:
    async with page_of(hq.home("FL-LAB")) as lab:
        await lab.until("/people", shows("CA-RC"))
        async with hq.client("CA-RC") as client:
            await client.offer_prekeys()
        await lab.ask("PUT", "/upload?to=CA-RC&path=first.bin", b"x")
        await lab.until("/sent", shows("with HQ"))
        await hq.stop()
        answer = await lab.ask("PUT", "/upload?to=CA-RC&path=later.bin", bytes(3_000_000))
        assert answer.status == 200, answer.text
        await lab.until("/sent", shows("later.bin", "sending"))
    await hq.start()
    async with page_of(hq.home("FL-LAB")) as lab:
        await lab.until("/sent", lambda page: "sending" not in page.words)
        outbox = lab.page.site.desk.client.outbox()  # type: ignore[union-attr]
        assert await outbox.store(Transfers(outbox.outbox).unfinished) == []


async def test_a_page_of_large_texts_is_bounded(
    hq: RealHq, center: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encrypted_lines, "PAGE_BYTES", 80_000)
    async with hq.client("FL-LAB") as client:
        for number in range(4):
            await client.publish(f"{number}" * 50_000, to=["CA-RC"])
    inside = center.page.site.desk
    assert inside is not None
    await center.until("/messages", lambda page: "0000" in page.text)
    found = await inside.inbox(messages.page_of, START, "", "")
    assert 1 <= len(found.rows) < 4
    page = await center.get("/messages")
    assert len(page.body) < 20_000
    seen, mark = len(found.rows), found.following
    while mark is not None:
        found = await inside.inbox(messages.page_of, mark, "", "")
        seen, mark = seen + len(found.rows), found.following
    assert seen == 4


async def test_a_revoked_client_is_told_so(hq: RealHq, lab: Web) -> None:
    await lab.until("/messages", shows("Connected to HQ"))
    async with hq.admin() as admin:
        await admin.revoke("FL-LAB", "left the project")
    page = await lab.until("/messages", shows("HQ is unreachable", "revoked"))
    assert "left the project" in page.words
    assert (await lab.get("/sent")).status == 200  # what is here can be read on


async def test_what_is_here_can_be_read_while_no_keys_can_be_verified(
    hq: RealHq, lab: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.until("/people", shows("CA-RC"))

    async def fails() -> None:
        raise CredentialsError("the revocation list is not signed by the CA")

    inside = lab.page.site.desk
    assert inside is not None
    monkeypatch.setattr(inside.client.revocations, "ensure", fails)
    page = await lab.get("/people")
    assert (page.status, "the revocation list is not signed" in page.words) == (200, True)
    assert "CA-RC" in page.words
    assert (await lab.get("/messages")).status == 200
    answer = await lab.post("/write", {"to": ["CA-RC"], "text": "kept in the form"})
    assert (answer.status, "kept in the form" in answer.text) == (400, True)


async def test_it_receives_when_the_other_receiver_of_the_home_ends(
    hq: RealHq, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk, "OTHER_S", 0.05)
    async with hq.client("CA-RC") as other, hq.client("FL-LAB") as lab:
        receiver = Receiver(other)
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(kept, receiver)
            async with page_of(hq.home("CA-RC")) as web:
                await lab.publish("taken by the other", to=["CA-RC"])
                await web.until("/messages", lambda page: "taken by the other" in page.text)
                assert receiver.received == 1
                scope.cancel()
                await lab.publish("taken by the page", to=["CA-RC"])
                await web.until("/messages", lambda page: "taken by the page" in page.text)
    assert receiver.received == 1


async def kept(receiver: Receiver, task_status: Any) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(receiver.keep)
            task_status.started(scope)
