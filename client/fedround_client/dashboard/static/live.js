// Live parts of a page: times that pass, fragments that the server pushes, and dialogs.
"use strict";
(() => {
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const REFRESH_MS = 1000; // between two requests of a part that asks for itself
  const SAY_MS = 5000; // between two announcements
  const RETRY_MS = 5000; // after the server has refused a stream

  function span(seconds) {
    const index = Math.max(0, UNITS.findIndex(([, size]) => seconds >= size));
    const [unit, size] = seconds < 1 ? UNITS[3] : UNITS[index];
    const text = `${Math.floor(seconds / size)} ${unit}`;
    // Of hours and days, also what is left over.
    if (index > 1 || size < 3600) return text;
    const [smaller, part] = UNITS[index + 1];
    return `${text} ${Math.floor((seconds % size) / part)} ${smaller}`;
  }

  function ago(seconds) {
    if (Math.abs(seconds) < 1) return "now";
    return seconds > 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
  }

  function clock(moment) {
    const date = new Date(moment);
    const isToday = date.toDateString() === new Date().toDateString();
    return isToday ? date.toLocaleTimeString() : date.toLocaleString();
  }

  function passTimes(root) {
    const now = Date.now();
    for (const time of root.querySelectorAll("time[data-shown]")) {
      const moment = Date.parse(time.dateTime);
      const text = time.dataset.shown === "clock" ? clock(moment)
        : ago((time.dataset.shown === "until" ? Math.min(now - moment, 0) : now - moment) / 1000);
      if (time.textContent !== text) time.textContent = text;
    }
  }

  const tab = document.querySelector(".tabs [aria-current]");
  if (tab) tab.scrollIntoView({ block: "nearest", inline: "center" });

  passTimes(document);
  setInterval(() => passTimes(document), 1000);
  document.body.addEventListener("htmx:afterSwap", (event) => passTimes(event.detail.target));

  // Dialogs: the form of a link in a dialog instead of on a page of its own.
  const dialog = document.getElementById("dialog");
  document.body.addEventListener("htmx:afterSwap", (event) => {
    if (event.detail.target === dialog && !dialog.open) dialog.showModal();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) {
      event.preventDefault();
      dialog.close();
    }
  });
  dialog.addEventListener("close", () => dialog.replaceChildren());

  // Who was chosen stays chosen while the filter changes.
  let chosen = [];
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target.id === "choices") chosen = [...event.detail.target.querySelectorAll("label:has(:checked)")];
  });
  document.body.addEventListener("htmx:afterSwap", ({ detail: { target } }) => {
    if (target.id !== "choices") return;
    for (const label of chosen) {
      const again = target.querySelector(`input[value="${label.control.value}"]`);
      if (again) again.checked = true;
      else target.querySelector("legend").after(label);
    }
    chosen = [];
  });

  // What was entered before htmx listened, or what the browser has restored, filters too.
  addEventListener("DOMContentLoaded", () => {
    for (const form of document.querySelectorAll("form.filter")) {
      const isChanged = [...form.querySelectorAll("input[type=search]")].some((one) => one.value !== one.defaultValue)
        || [...form.querySelectorAll("option")].some((one) => one.selected !== one.defaultSelected && one.value);
      if (isChanged) form.dispatchEvent(new Event("entered"));
    }
  });

  // What was done is said once, and not when the page is loaded again.
  if (new URLSearchParams(location.search).has("done")) history.replaceState(null, "", location.pathname);

  const path = document.body.dataset.live;
  if (!path) return;

  const mark = document.getElementById("connection");
  function connection(state, text) {
    if (mark.textContent === text) return;
    mark.hidden = false;
    mark.className = `connection ${state}`;
    mark.textContent = text;
  }

  const announcement = document.getElementById("announce");
  let saying = null;
  let toSay = "";
  function say(text) {
    if (!text || text === toSay) return;
    const isFirst = !toSay;
    toSay = text;
    if (isFirst || saying) return; // what the page already shows is not read out again
    saying = setTimeout(() => {
      announcement.textContent = toSay;
      saying = null;
    }, SAY_MS);
  }

  function replace(id, html) {
    const old = document.getElementById(id);
    if (!old) return;
    const holder = document.createElement("template");
    holder.innerHTML = html;
    const fresh = holder.content.firstElementChild;
    passTimes(fresh);
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const scrolled = [...old.querySelectorAll("[tabindex]")].map((one) => one.scrollTop);
    old.replaceWith(fresh);
    htmx.process(fresh);
    fresh.querySelectorAll("[tabindex]").forEach((one, index) => { one.scrollTop = scrolled[index] || 0; });
    if (!focused) return;
    const next = (focused.id && document.getElementById(focused.id)) || fresh.querySelector("[tabindex]");
    if (next) next.focus({ preventScroll: true });
  }

  const stamps = {};
  const asked = new WeakMap();
  function refresh(element) {
    const state = asked.get(element) || { last: 0, timer: null };
    asked.set(element, state);
    if (state.timer) return;
    const wait = Math.max(0, state.last + REFRESH_MS - Date.now());
    state.timer = setTimeout(() => {
      state.timer = null;
      state.last = Date.now();
      element.dispatchEvent(new Event("changed"));
    }, wait);
  }

  function apply(live) {
    for (const [id, html] of Object.entries(live.fragments)) replace(id, html);
    for (const [name, stamp] of Object.entries(live.stamps)) {
      const isNew = name in stamps && stamps[name] !== stamp;
      stamps[name] = stamp;
      if (isNew) document.querySelectorAll(`[data-stamp="${name}"]`).forEach(refresh);
    }
    say(live.says);
    if (live.gone) connection("off", "This training does not exist any more");
    else if (live.problem) connection("off", `No news from the server: ${live.problem}`);
    else connection("on", "Live");
  }

  let source = null;
  let isOver = false;
  let retry = null;
  function open() {
    clearTimeout(retry);
    if (source || isOver || document.hidden) return;
    source = new EventSource(path);
    source.addEventListener("live", (event) => apply(JSON.parse(event.data)));
    source.addEventListener("signed-out", () => {
      close();
      location.reload();
    });
    source.addEventListener("busy", () => {
      close();
      connection("off", "Too many pages are open");
      retry = setTimeout(open, RETRY_MS);
    });
    source.addEventListener("over", () => {
      isOver = true;
      close();
      if (mark.classList.contains("on")) connection("", "Ended");
    });
    source.addEventListener("error", () => {
      connection("off", "No connection to the dashboard");
      if (source.readyState !== EventSource.CLOSED) return;
      close();
      retry = setTimeout(open, RETRY_MS);
    });
  }

  function close() {
    if (source) source.close();
    source = null;
  }

  // A browser has few connections to a host: hidden tabs give theirs back.
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
})();
