/* What the page does beyond HTML: draw itself anew when something changed, and upload files.
 *
 * No text ever becomes code or markup here: a page that is drawn anew is parsed by the browser as a
 * document (responseType "document", in which no script runs), and its parts are moved over.
 */
"use strict";

const body = document.body;
const spoken = document.getElementById("spoken");

/* -- live ---------------------------------------------------------------------------------------- */

function fetchPage(done) {
  const request = new XMLHttpRequest();
  request.open("GET", location.pathname + location.search);
  request.responseType = "document";
  request.setRequestHeader("X-Live", "1");  // no person did this: the idle time goes on
  request.onload = () => {
    if (request.status === 401 || new URL(request.responseURL).pathname === "/enter") {
      location.assign("/enter");
    } else if (request.response) {
      done(request.response);
    }
  };
  request.onerror = () => {  // the program has ended
    const line = document.getElementById("line");
    if (line) line.textContent = body.dataset.offline;
  };
  request.send();
}

function busy(part) {
  const active = document.activeElement;
  return part.contains(active) && active.matches("input, textarea, select");
}

function redraw(fresh) {
  let grown = false;
  for (const part of document.querySelectorAll("[data-live][id]")) {
    const next = fresh.getElementById(part.id);
    if (!next || busy(part)) continue;
    const open = new Map();
    for (const one of part.querySelectorAll("details[id]")) open.set(one.id, one.open);
    for (const one of next.querySelectorAll("details[id]")) {
      if (open.has(one.id)) one.open = open.get(one.id);
    }
    if (part.outerHTML === next.outerHTML) continue;
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const place = focused && (focused.id || focused.getAttribute("href"));
    if (part.id === "list" && next.firstElementChild && part.firstElementChild
        && next.firstElementChild.id !== part.firstElementChild.id) grown = true;
    part.replaceWith(document.adoptNode(next));
    if (place) {
      const again = [...next.querySelectorAll("a, summary, button")]
        .find((one) => (one.id || one.getAttribute("href")) === place);
      if (again) again.focus();
    }
  }
  if (grown && spoken) spoken.textContent = body.dataset.new;
}

if (body.dataset.live) {
  const channel = new BroadcastChannel("live");
  let waiting = null;
  let last = 0;
  let missed = false;  // while nobody looked at this tab
  const heard = (what) => {
    if (what === "locked") { location.assign("/enter"); return; }
    if (document.hidden) { missed = true; return; }
    if (waiting) return;  // at most once a second, however much arrives
    waiting = setTimeout(() => { waiting = null; fetchPage(redraw); }, Math.max(50, last + 1000 - Date.now()));
    last = Date.now();
  };
  const tell = (what) => { heard(what); channel.postMessage(what); };
  const listen = () => new Promise((end) => {  // held until this page is left
    const source = new EventSource("/live");
    source.onmessage = (event) => tell(event.data);
    source.onerror = () => {  // logged out, the program was started again, or it has ended
      fetchPage(redraw);
      channel.postMessage("changed");
      if (source.readyState === EventSource.CLOSED) setTimeout(end, 5000);  // refused; once more
    };
    addEventListener("pagehide", () => source.close());
  });
  channel.onmessage = (event) => heard(event.data);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && missed) { missed = false; heard("changed"); }
  });
  // One tab listens for all: a browser opens six connections to one name, and a stream keeps one.
  const take = async () => {
    for (;;) await (navigator.locks ? navigator.locks.request("live", listen) : listen());
  };
  take();
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
}

/* -- files --------------------------------------------------------------------------------------- */

const form = document.getElementById("write");
const drop = document.getElementById("drop");

function sizeText(size) {
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (size < 1000) return unit === "B" ? `${size} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1000;
  }
  return `${size.toFixed(1)} TB`;
}

if (form && drop) {
  const list = document.getElementById("chosen");
  const files = [];  // {file, path, row, bar, state}
  drop.hidden = false;

  const add = (file, path) => {
    const row = document.createElement("li");
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = path;
    const state = document.createElement("span");
    state.className = "dim";
    state.textContent = ` ${sizeText(file.size)}`;
    const bar = document.createElement("progress");
    bar.max = file.size || 1;
    bar.value = 0;
    bar.hidden = true;
    bar.setAttribute("aria-label", path);
    row.append(name, state, bar);
    list.append(row);
    files.push({ file, path, row, bar, state, kept: false });
  };

  const walk = (entry, path) => new Promise((resolve) => {
    if (entry.isFile) {
      entry.file((file) => { add(file, path + file.name); resolve(); }, resolve);
      return;
    }
    const reader = entry.createReader();
    const more = () => reader.readEntries(async (found) => {
      if (!found.length) { resolve(); return; }
      for (const one of found) await walk(one, `${path}${entry.name}/`);
      more();
    }, resolve);
    more();
  });

  for (const id of ["files", "folder"]) {
    document.getElementById(id).addEventListener("change", (event) => {
      for (const file of event.target.files) add(file, file.webkitRelativePath || file.name);
      event.target.value = "";
    });
  }
  for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry && one.webkitGetAsEntry());
    if (entries.some(Boolean)) {
      for (const entry of entries) if (entry) walk(entry, "");
    } else {
      for (const file of event.dataTransfer.files) add(file, file.name);
    }
  });

  const upload = (one, query) => new Promise((resolve) => {
    const request = new XMLHttpRequest();
    query.set("path", one.path);
    request.open("PUT", `/upload?${query}`);
    request.responseType = "json";
    one.bar.hidden = false;
    request.upload.onprogress = (event) => {
      one.bar.value = event.loaded;
      one.state.textContent = ` ${sizeText(event.loaded)} / ${sizeText(one.file.size)}`;
    };
    request.onloadend = () => {
      const answer = request.response || {};
      one.kept = request.status === 200;
      one.row.className = one.kept ? "good" : "bad";
      one.state.textContent = one.kept ? ` ${form.dataset.kept}`
        : ` ${form.dataset.failed}: ${[answer.error, answer.remedy].filter(Boolean).join("; ")}`;
      resolve(one.kept);
    };
    request.send(one.file);
  });

  form.addEventListener("submit", async (event) => {
    const waiting = files.filter((one) => !one.kept);
    if (!waiting.length) return;
    event.preventDefault();
    const button = document.getElementById("send");
    button.disabled = true;
    const query = new URLSearchParams();
    const fields = new FormData(form);
    for (const to of fields.getAll("to")) query.append("to", to);
    for (const name of ["exchange", "key"]) if (fields.get(name)) query.set(name, fields.get(name));
    let whole = true;
    for (const one of waiting) whole = await upload(one, query) && whole;
    button.disabled = false;
    if (!whole) return;
    if (String(fields.get("text")).trim()) form.submit(); else location.assign("/sent?said=sent");
  });
  addEventListener("beforeunload", (event) => {
    if (document.getElementById("send").disabled) event.preventDefault();
  });
}

/* -- a receipt to verify ------------------------------------------------------------------------- */

const pick = document.getElementById("receipt-file");
if (pick) {
  document.getElementById("pick-receipt").hidden = false;
  pick.addEventListener("change", async () => {
    const [file] = pick.files;
    if (file && file.size < 900000) document.getElementById("receipt").value = await file.text();
  });
}

/* -- a code to compare --------------------------------------------------------------------------- */

const scan = document.getElementById("scan");
if (scan) {
  const heard = document.getElementById("heard");
  const video = scan.querySelector("video");
  const said = scan.querySelector("[role=status]");
  const canvas = document.createElement("canvas");
  let stream = null;
  scan.hidden = false;

  const stop = () => {
    if (stream) for (const track of stream.getTracks()) track.stop();
    stream = null;
    video.hidden = true;
  };
  const read = (picture, width, height, most) => {
    if (!width || !height) return false;
    const scale = Math.min(1, most / Math.max(width, height));
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const drawing = canvas.getContext("2d", { willReadFrequently: true });
    drawing.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const text = readCode(drawing.getImageData(0, 0, canvas.width, canvas.height));
    if (!text) return false;
    stop();
    heard.value = text;
    heard.form.requestSubmit();
    return true;
  };
  document.getElementById("camera").addEventListener("click", async () => {
    if (stream) { stop(); return; }
    said.textContent = "";
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.srcObject = stream;
      video.hidden = false;
      await video.play();
    } catch {
      stop();
      said.textContent = scan.dataset.refused;
      return;
    }
    while (stream && !read(video, video.videoWidth, video.videoHeight, 800)) {
      await new Promise((done) => setTimeout(done, 200));
    }
  });
  document.getElementById("picture").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    event.target.value = "";
    if (!file) return;
    try {
      const picture = await createImageBitmap(file);
      if ([800, 1600].some((most) => read(picture, picture.width, picture.height, most))) return;
    } catch { /* it is no picture */ }
    said.textContent = scan.dataset.none;
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) stop(); });
  addEventListener("pagehide", stop);
}
