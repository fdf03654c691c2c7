// The waiting page: wakes the GPU once when a person really looks at it, follows the status, and
// opens what was asked for as soon as the GPU is ready. The page works without it, by refresh and
// form (waiting.html); here the same elements are filled.
"use strict";

(() => {
  const config = JSON.parse(document.getElementById("qwenctl-status").textContent);
  const text = config.text;
  const el = (id) => document.getElementById(id);
  const card = document.querySelector("main");
  const scene = document.querySelector(".scene");
  const seconds = () => performance.now() / 1000;

  const POLL = 3; // between two polls, in seconds
  const POLL_HIDDEN = 5;
  const RENEW = 10; // another page passes on its stream: a poll only keeps this page's demand
  const SILENCE = 20; // no news on the stream for so long: ask, the connection may be dead
  const FIRST_NEWS = 1; // how long a visible page waits for the stream before it polls
  const GRACE = 10; // an accepted wake may take so long to show in the status
  const RELOADS = 3; // that many automatic reloads within RELOAD_WINDOW, then a button
  const RELOAD_WINDOW = 20;

  let status = config.status;
  let receivedAt = seconds();
  let wakeSent = false; // the visit's own wake; a click always posts
  let sending = false;
  let acceptedAt = -Infinity;
  let over = false; // the page is being left, or following makes no sense any more
  let stuck = false; // ready, but reloading did not help
  let notice = null; // {text, detail, wait, wake}: the last refusal, and whether of a wake
  let gaveUp = false; // the person does not need it any more: no wake but by the button
  let best = 0; // the bar never goes backwards within one wake
  let announced = "";

  // ---- words -------------------------------------------------------------------------------

  const say = (key, values = {}) =>
    text[key].replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
  const sayOr = (key, other) => (key in text ? text[key] : other);

  // The same as in macros.html.
  function exact(value) {
    const s = Math.max(0, Math.round(value));
    if (s < 60) return say("unit.s", { s });
    if (s >= 3600) return about(s);
    const min = Math.floor(s / 60);
    return s % 60 ? say("unit.min_s", { min, s: s % 60 }) : say("unit.min", { min });
  }

  function about(value) {
    const s = Math.max(1, value);
    const min = Math.round(s / 60);
    if (s <= 10) return say("unit.s", { s: Math.ceil(s) });
    if (s <= 90) return say("unit.s", { s: Math.ceil(s / 5) * 5 });
    if (min < 60) return say("unit.min", { min });
    if (min >= 2880) return say("unit.d", { d: Math.round(min / 1440) });
    const h = Math.floor(min / 60);
    return min % 60 ? say("unit.h_min", { h, min: min % 60 }) : say("unit.h", { h });
  }

  const took = (value) => (value < 9.95 ? say("unit.s", { s: value.toFixed(1) }) : exact(value));
  const failureText = (code) => sayOr(`failure.${code}`, text["failure.other"]);

  // ---- what the status means ----------------------------------------------------------------

  const wanted = () => status.wanted || sending || seconds() - acceptedAt < GRACE;

  const modeNow = () => (wanted() ? status.mode_if_wanted : status.mode);

  const mayWake = () => status.may_wake && status.wake_on !== "never";

  // How far the wake is, 0 to 1, or null where nobody knows.
  function share(mode, waking, since) {
    if (mode === "ready") return 1;
    if (!waking) return (best = 0);
    if (status.elapsed_seconds === null || status.eta_seconds === null) return best || null;
    const total = Math.max(1, status.elapsed_seconds + status.eta_seconds);
    let done = (status.elapsed_seconds + since) / total;
    if (done > 0.95) done = 0.95 + 0.04 * (1 - Math.exp(-4 * (done - 0.95))); // late: creep on
    return (best = Math.max(best, done));
  }

  function etaText(mode, since) {
    if (mode === "ready") return "";
    if (status.eta_seconds === null) return text[mode === "troubled" ? "eta.none" : "eta.unknown"];
    const left = status.eta_seconds - since;
    if (left <= 0) return text["eta.longer"];
    const soon = mode !== "troubled" && (status.progress?.percent ?? 100) >= 90;
    return left <= 3 && soon ? text["eta.moment"] : say("eta.left", { time: about(left) });
  }

  // ---- drawing ------------------------------------------------------------------------------

  function put(element, words) {
    if (element.textContent !== words) element.textContent = words;
  }

  function show(element, visible) {
    if (element.hidden === visible) element.hidden = !visible;
  }

  function row(id, words) {
    show(el(id), words !== "");
    put(el(id).querySelector("dd"), words);
  }

  function fill(bar, percent) {
    if (percent === null) bar.removeAttribute("value");
    else bar.value = percent;
  }

  function draw() {
    if (over && !stuck) return;
    const since = seconds() - receivedAt;
    const { name: mode, waking, idle } = modeNow();
    const done = share(mode, waking, since);

    card.dataset.mode = mode;
    if (waking) scene.style.setProperty("--p", String(done ?? 0.05));
    else scene.style.removeProperty("--p");
    card.removeAttribute("data-level");
    put(el("headline"), text[`headline.${mode}`]);
    const given = gaveUp && status.wanted && (waking || mode === "retrying");
    const loop = gaveUp ? "given_up.ready" : "open.loop";
    put(el("lead"), text[stuck ? loop : given ? "given_up.others" : `lead.${mode}`]);

    show(el("progress"), waking);
    fill(el("bar"), done === null ? null : Math.round(done * 1000) / 10);
    put(el("eta"), waking ? etaText(mode, since) : "");
    const elapsed = status.elapsed_seconds;
    put(el("elapsed"), elapsed === null ? "" : say("elapsed", { time: exact(elapsed + (mode === "ready" ? 0 : since)) }));

    drawFailure(mode, waking, since);
    show(el("other-machine"), Boolean(status.note) && waking);
    el("other-machine").title = status.note;
    const agent = status.agent_trouble ?? null;
    show(el("agent"), agent !== null && (waking || mode === "failed"));
    const late = status.overdue ?? null;
    show(el("overdue"), late !== null);
    put(el("overdue"), late === null ? "" : say("overdue", { time: about(late.seconds + since), urls: late.urls.join(", ") }));
    put(el("agent"), agent === null ? "" : sayOr(`agent.${agent}`, ""));
    drawBlocked(mode, since);
    drawActions(mode, waking, idle, since);
    drawSteps(mode, waking, since);
    drawNotice();
    show(el("stay"), waking && mode !== "ready");

    const percent = waking && done !== null && mode !== "ready" ? `${Math.floor(done * 100)}% · ` : "";
    const title = `${percent}${text[`headline.${mode}`]} · ${config.gpu}`;
    if (document.title !== title) document.title = title;
    if (announced !== mode) {
      if (announced) put(el("announce"), `${text[`headline.${mode}`]}. ${el("lead").textContent}`);
      announced = mode;
    }
  }

  function drawFailure(mode, waking, since) {
    const failure = status.failure;
    const troubled = failure !== null && (mode === "failed" || mode === "retrying");
    show(el("failure"), troubled);
    show(el("earlier"), failure !== null && waking && mode !== "ready");
    if (failure === null) return;
    put(el("earlier"), say("failure.earlier", { n: failure.attempts + 1, what: failureText(failure.code) }));
    put(el("failure-what"), failureText(failure.code));
    put(el("failure-advice"), sayOr(`advice.${failure.code}`, text["advice.other"]));
    let retry = "";
    if (failure.retry_in_seconds !== null && mode === "retrying") {
      const left = failure.retry_in_seconds - since;
      retry = left >= 1 ? say("failure.retry_in", { time: exact(left) }) : text["failure.retry_now"];
    }
    row("failure-retry", retry);
    row("failure-attempts", String(failure.attempts));
    row("failure-code", failure.code);
    row("failure-details", failure.message);
  }

  function drawBlocked(mode, since) {
    const blocked = status.blocked;
    show(el("blocked"), mode === "blocked");
    if (!blocked) return;
    put(el("blocked-what"), sayOr(`block.${blocked.kind}`, text["block.other"]));
    row("blocked-reason", blocked.reason || "");
    const by = { maintenance: () => text["block.admin"], "off-hours": (name) => name && say("block.schedule", { name }) };
    row("blocked-by", (by[blocked.kind] ?? String)(blocked.by || ""));
    row("blocked-then", status.after_block ? text[`block.${status.after_block}`] : "");
    if (blocked.seconds_left === null) {
      row("blocked-until", text["block.open"]);
      return;
    }
    const left = Math.max(0, blocked.seconds_left - since);
    const end = new Date(Date.now() + left * 1000);
    const clock = { hour: "2-digit", minute: "2-digit" };
    if (left > 20 * 3600) Object.assign(clock, { weekday: "short", month: "short", day: "numeric" });
    const words = end.toLocaleString(config.lang, clock);
    row("blocked-until", `${words} (${say("block.left", { time: about(left) })})`);
  }

  // Whether a person may have the next attempt made at once.
  function triesNow(mode, since) {
    const failure = status.failure;
    if (failure === null || mode !== "retrying" || !mayWake()) return false;
    return failure.code !== "throttled" && (failure.retry_in_seconds ?? 0) - since >= 3;
  }

  function drawActions(mode, waking, idle, since) {
    const waits = waking || mode === "retrying";
    const tries = triesNow(mode, since);
    const wakeable = idle && mayWake();
    const button = el("wake");
    const clicked = sending && button.dataset.clicked === "yes"; // keep the focus where it is
    const again = gaveUp && waits && mayWake(); // somebody else keeps it waking
    const offered = wakeable || clicked || stuck || tries || again;
    if (!offered && document.activeElement === button) el("headline").focus();
    show(el("actions"), offered);
    const wakes = again ? "wake.after_all" : tries ? "wake.now" : mode === "failed" ? "wake.again" : "wake";
    put(button, text[stuck ? "open" : clicked ? "wake.sending" : wakes]);
    if (el("give-up")) show(el("give-up"), status.wanted && waits && !gaveUp && mode !== "ready");
    button.setAttribute("aria-disabled", String(clicked));
    show(el("hint"), idle && !mayWake());
    put(el("hint"), text[status.wake_on === "never" ? "hint.never" : "hint.no_access"]);
    const usually = status.steps.reduce((sum, step) => sum + (step.expected ?? 0), 0);
    show(el("usual"), wakeable && usually > 0 && mode !== "failed");
    put(el("usual"), say("usual", { time: about(usually) }));
  }

  function drawSteps(mode, waking, since) {
    const troubled = status.failure !== null && (mode === "failed" || mode === "retrying");
    show(el("steps"), waking || troubled);
    for (const item of el("steps").children) {
      const step = status.steps.find((one) => one.key === item.dataset.key) ?? { state: "todo", seconds: null, expected: null };
      // Our wake is on its way, and the status does not know yet.
      const early = mode === "requested" && step.key === "request" && step.state === "todo";
      const state = early ? "active" : step.state;
      if (item.dataset.state !== state) {
        item.dataset.state = state;
        if (state === "active") item.setAttribute("aria-current", "step");
        else item.removeAttribute("aria-current");
        put(item.querySelector('[data-part="state"]'), ` (${text[`state.${state}`]})`);
        if (state === "active" && waking && !early) put(el("announce"), text[`step.${step.key}`]);
      }
      let time = "";
      if (state === "todo") time = step.expected ? say("step.expected", { time: about(step.expected) }) : "";
      else if (step.seconds !== null) time = state === "active" ? exact(step.seconds + since) : state === "done" ? took(step.seconds) : exact(step.seconds);
      put(item.querySelector('[data-part="time"]'), time);
    }
    const node = status.progress;
    show(el("node"), node !== null);
    if (node === null) return;
    put(el("node-phase"), sayOr(`progress.${node.phase}`, node.phase || text["progress.other"]));
    put(el("node-percent"), node.percent === null ? "" : `${Math.round(node.percent)}\u00a0%`);
    const left = node.eta === null ? 0 : node.eta - since;
    put(el("node-eta"), left >= 1 ? say("eta.left", { time: about(left) }) : "");
    show(el("node-bar"), node.percent !== null);
    if (node.percent !== null) fill(el("node-bar"), node.percent);
    put(el("node-text"), status.problem || node.text);
  }

  function drawNotice() {
    show(el("notice"), notice !== null);
    if (notice === null) return;
    put(el("notice-text"), notice.text);
    put(el("notice-detail"), notice.detail);
  }

  // ---- talking to the proxy -------------------------------------------------------------------

  const address = (what) => `/_qwenctl/api/${what}?gpu=${encodeURIComponent(config.gpu)}`;

  async function ask(what, options = {}, more = "") {
    const abort = new AbortController();
    const timer = setTimeout(() => abort.abort(), 20000);
    try {
      return await fetch(address(what) + more, {
        ...options,
        headers: { Accept: "application/json", ...options.headers },
        credentials: "same-origin",
        cache: "no-store",
        signal: abort.signal,
      });
    } finally {
      clearTimeout(timer);
    }
  }

  // Says in a sentence what a refusal means.
  async function refused(response, wake = false) {
    if (response.status === 401) {
      over = true;
      stop();
      const here = location.pathname + location.search + location.hash;
      location.assign(`/_qwenctl/login?next=${encodeURIComponent(here)}`);
      return;
    }
    let problem = {};
    if (/json/.test(response.headers.get("Content-Type") ?? "")) {
      problem = await response.json().catch(() => ({}));
    }
    const wait = Number(response.headers.get("Retry-After")) || 5;
    const words = {
      403: () => text["error.403"],
      409: () => text["error.shared"],
      423: () => text["error.blocked"],
      429: () => say("error.429", { time: about(wait) }),
      503: () => text["error.503"],
    }[response.status];
    notice = {
      text: words ? words() : say("error.other", { code: response.status }),
      detail: problem.detail ?? problem.title ?? "",
      wait,
      wake,
    };
  }

  async function wake(more = "") {
    if (sending || over) return;
    sending = true;
    notice = null;
    draw();
    try {
      const response = await ask("wake", { method: "POST", headers: { "X-Qwenctl-Wake": "1" } }, more);
      if (response.ok) {
        acceptedAt = seconds();
        const answer = await response.json().catch(() => null);
        if (answer?.mode) update(answer);
      } else {
        await refused(response, true);
      }
    } catch {
      notice = { text: text["error.offline"], detail: "", wait: POLL, wake: true };
    } finally {
      sending = false;
      delete el("wake").dataset.clicked;
    }
    // A refusal can mean that the page is out of date: somebody has just blocked the GPU.
    if (notice !== null && !over) void refresh();
    draw();
  }

  // For all pages of this browser: they have one demand, and would wake the GPU again.
  function setGaveUp(given) {
    gaveUp = given;
    stream.tell({ gpu: config.gpu, gaveUp });
  }

  async function giveUp() {
    setGaveUp(true);
    try {
      const response = await ask("give-up", { method: "POST" });
      if (response.ok) update(await response.json());
      else await refused(response);
      if (!response.ok) setGaveUp(false);
    } catch {
      setGaveUp(false);
      notice = { text: text["error.offline"], detail: "", wait: POLL, wake: true };
    }
    draw();
  }

  // The visit's one wake. Prefetched, prerendered and background pages do not count as a visit.
  function wakeForVisit() {
    if (wakeSent || over || gaveUp || status.wake_on !== "visit" || !mayWake() || status.blocked) return;
    if (status.wanted || status.mode.name === "ready") return;
    if (document.visibilityState !== "visible" || document.prerendering) return;
    wakeSent = true;
    void wake();
  }

  // ---- following the status -------------------------------------------------------------------

  const stream = new QwenctlStream(config.gpu, address("events"), heard, broke, (note) => {
    if (note.gpu !== config.gpu) return;
    gaveUp = note.gaveUp;
    draw();
  });
  let timer = 0; // the next poll
  let retry = 0; // the next try of the stream
  let polling = 0; // counts the poll loops; only the latest goes on
  let failures = 0; // of the stream, in a row
  let askedAt = -Infinity; // the last poll
  let lastNews = seconds();

  function update(fresh, age = 0) {
    if (over) return;
    if (fresh.phase !== status.phase || fresh.wanted !== status.wanted) void refreshTiers();
    status = fresh;
    lastNews = seconds();
    receivedAt = lastNews - age;
    if (status.wanted || status.mode.waking) acceptedAt = -Infinity;
    // News ends a complaint about the connection; one about a wake stays until it does not matter.
    if (!notice?.wake || !modeNow().idle) notice = null;
    if (status.mode.name === "ready") {
      open();
      return;
    }
    wakeForVisit();
    draw();
  }

  // One question. Returns how many seconds to wait before the next.
  async function refresh() {
    lastNews = seconds();
    const pause = document.hidden ? POLL_HIDDEN : POLL;
    try {
      const response = await ask("status", {}, document.hidden ? "" : "&visible=1");
      if (!response.ok) {
        await refused(response);
        draw();
        return Math.max(pause, notice?.wait ?? 0);
      }
      update(await response.json());
      return pause;
    } catch {
      if (!notice?.wake) notice = { text: text["error.offline"], detail: "", wait: POLL, wake: false };
      draw();
      return pause;
    }
  }

  async function poll() {
    const mine = ++polling;
    let pause = POLL;
    if (!stream.leads && !(stream.passedOn && seconds() - askedAt < RENEW)) {
      askedAt = seconds();
      pause = await refresh();
    }
    if (!over && mine === polling) timer = setTimeout(poll, pause * 1000);
  }

  function stop() {
    stream.leave();
    polling += 1;
    clearTimeout(timer);
    clearTimeout(retry);
  }

  function heard(fresh, age) {
    failures = 0;
    update(fresh, age);
  }

  // The stream says nothing about the reason; polling does, and keeps the page alive.
  function broke() {
    failures += 1;
    void poll();
    retry = setTimeout(() => stream.join(), Math.min(60, 2.5 * 2 ** failures) * 1000);
  }

  // Visible pages share a stream; each polls until it has news of it, and then to keep its demand.
  function follow() {
    stop();
    if (over) return;
    if (!document.hidden) stream.join();
    timer = setTimeout(poll, document.hidden || !window.EventSource ? 0 : FIRST_NEWS * 1000);
  }

  // The other GPUs of this address; what is said of them may be some seconds old.
  async function refreshTiers() {
    if (!el("tiers") || over || document.hidden) return;
    try {
      const response = await ask("tiers");
      if (!response.ok) return;
      for (const one of (await response.json()).tiers) {
        const button = [...el("tiers").elements].find((other) => other.value === one.tier && other.name === "tier");
        if (!button) continue;
        const state = button.querySelector("[data-state]");
        state.dataset.state = one.state;
        put(state, one.seconds ? say(`tier.${one.state}.time`, { time: about(one.seconds) }) : text[`tier.${one.state}`]);
      }
    } catch {
      // The page's own GPU says what is wrong.
    }
  }

  // ---- opening what was asked for ---------------------------------------------------------------

  // Whether one more automatic reload is allowed; never without storage to count them in.
  function mayReload() {
    try {
      const now = Date.now();
      const recent = JSON.parse(sessionStorage.getItem("qwenctl.reloads") ?? "[]").filter(
        (at) => now - at < RELOAD_WINDOW * 1000,
      );
      if (recent.length >= RELOADS) return false;
      sessionStorage.setItem("qwenctl.reloads", JSON.stringify([...recent, now]));
      return true;
    } catch {
      return false;
    }
  }

  function load() {
    // Usually this page stands at the address that was asked for; it also has one of its own.
    // Replacing an address that has a fragment by itself would only scroll.
    if (location.pathname.startsWith("/_qwenctl/")) location.replace(config.next);
    else if (location.hash) location.reload();
    else location.replace(location.href);
  }

  function open() {
    if (over) return;
    draw();
    over = true;
    stop();
    clearInterval(ticking);
    if (!gaveUp && mayReload()) {
      load();
      return;
    }
    stuck = true;
    draw();
  }

  // ---- begin ------------------------------------------------------------------------------------

  el("wake").addEventListener("click", () => {
    if (stuck) {
      load();
      return;
    }
    el("wake").dataset.clicked = "yes";
    if (gaveUp) setGaveUp(false);
    void wake(status.failure === null ? "" : "&now=1");
  });

  el("give-up")?.addEventListener("submit", (event) => {
    event.preventDefault();
    void giveUp();
  });

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) wakeSent = false; // coming back is a visit, too
    wakeForVisit();
    failures = 0;
    follow();
  });
  document.addEventListener("prerenderingchange", wakeForVisit);
  window.addEventListener("online", follow);
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) location.reload(); // back from the browser's page cache, out of date
  });

  const ticking = setInterval(() => {
    if (stream.leads && seconds() - lastNews > SILENCE) void refresh();
    draw();
  }, 500);

  setInterval(refreshTiers, POLL * 1000);

  announced = modeNow().name;
  update(status);
  follow();
})();
