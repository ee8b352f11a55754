// Keys, a filter for long lists of choices, and forms that are sent without leaving the page, so
// that nothing typed is lost. The page's forms also work without this script.
"use strict";

const page = () => document.getElementById("page");
const announce = (text) => { document.getElementById("status").textContent = text; };
const showError = (text) => { document.getElementById("error").textContent = text; };
const filter = () => document.getElementById("filter");
const options = () => [...document.querySelectorAll(".choices.many button")];

let busy = false;
let shownAt = performance.now();

// Sending a response

async function send(form, button) {
  if (busy) return; // a second click, or a key that was pressed too early
  busy = true;
  page().setAttribute("aria-busy", "true");
  if (form.elements.ms) form.elements.ms.value = Math.round(performance.now() - shownAt);
  try {
    const body = new URLSearchParams(new FormData(form, button));
    show(await read(await fetch(form.action, { method: "POST", body })));
  } catch (error) {
    showError("The server does not answer. Your response is not saved, but it is still on this page. " +
      "Start the server again in the terminal, or try again.");
  } finally {
    busy = false;
    page().removeAttribute("aria-busy");
  }
}

async function read(response) {
  const found = new DOMParser().parseFromString(await response.text(), "text/html");
  return { status: response.status, url: response.url, found };
}

function show({ status, url, found }) {
  const problem = found.querySelector("[role=alert].problem");
  const usable = found.getElementById("page");
  if (!usable || (status >= 400 && status !== 409)) {
    // The item and what was typed stay where they are, to be sent again.
    showError(problem ? problem.textContent : `The server failed (${status}). This was not saved.`);
    return;
  }
  showError("");
  page().replaceWith(document.adoptNode(usable));
  document.title = found.title;
  if (status < 400) history.replaceState(null, "", url);
  begin();
  const messages = problem ? [problem] : page().querySelectorAll("[data-feedback], .place, h1");
  announce([...messages].map((part) => part.textContent).join(". "));
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target, event.submitter);
});

// A page from the browser's cache may show an item that was answered since.
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// Start of a page

function begin() {
  shownAt = performance.now();
  const first = document.querySelector("#answer, #name") ?? filter();
  if (filter()) {
    filter().closest("[hidden]").hidden = false;
    document.getElementById("choices").setAttribute("role", "listbox");
    for (const option of options()) {
      option.setAttribute("role", "option");
      option.tabIndex = -1; // reached by the arrow keys
    }
    filter().addEventListener("input", () => narrow());
    narrow();
  }
  (first ?? document.querySelector(".item"))?.focus({ preventScroll: true });
  first?.setSelectionRange(first.value.length, first.value.length);
  window.scrollTo(0, 0);
}

// Long lists of choices

// "card ar" finds card_arrival.
const normalized = (text) => text.toLowerCase().replace(/[\s_-]+/g, " ").trim();

function rank(option, wanted) {
  const text = normalized(option.value.slice(option.value.indexOf(":") + 1));
  if (text === wanted) return 0;
  if (wanted && option.dataset.number.split(" ").includes(wanted)) return 1;
  if (text.startsWith(wanted)) return 2;
  const parts = wanted.split(" ");
  if (parts.every((part) => ` ${text}`.includes(` ${part}`))) return 4;
  return parts.every((part) => text.includes(part)) ? 5 : null;
}

function narrow() {
  const wanted = normalized(filter().value);
  const ranked = options().map((option) => ({ option, rank: rank(option, wanted) }));
  for (const { option, rank: found } of ranked) option.hidden = found === null;
  const left = ranked.filter((one) => one.rank !== null);
  const best = left.reduce((a, b) => (a && a.rank <= b.rank ? a : b), null);
  // A number selects only the choice of this number: 1 must not select "10: all".
  const sure = best && (best.rank <= 1 || !/^\p{Nd}+$/u.test(wanted));
  select(wanted && sure ? best.option : null);
  document.querySelector(".filter output").textContent =
    left.length ? (wanted ? `${left.length} of ${ranked.length}` : "") : "No choice contains this.";
}

function select(option) {
  for (const other of options()) other.setAttribute("aria-selected", String(other === option));
  if (option) filter().setAttribute("aria-activedescendant", option.id);
  else filter().removeAttribute("aria-activedescendant");
  option?.scrollIntoView({ block: "nearest" });
}

function move(step) {
  const left = options().filter((option) => !option.hidden);
  const now = left.findIndex((option) => option.getAttribute("aria-selected") === "true");
  const next = now < 0 ? (step > 0 ? 0 : left.length - 1) : now + step;
  if (left.length) select(left[(next + left.length) % left.length]);
}

// Keys

function inFilter(event) {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    move(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Enter") {
    event.preventDefault();
    if (!event.repeat) options().find((o) => o.getAttribute("aria-selected") === "true")?.click();
  }
}

function leave(field) {
  const details = field.closest("details");
  if (details) details.open = false;
  field.blur();
  document.querySelector(".item")?.focus({ preventScroll: true });
}

function press(target) {
  if (target.matches("input, textarea")) return target.focus();
  target.click();
  if (target.matches("summary")) target.parentElement.querySelector("input:not([type=hidden])")?.focus();
}

document.addEventListener("keydown", (event) => {
  const field = event.target.closest("input, textarea");
  if (event.isComposing) return;
  if (event.key === "Escape") return leave(event.target);
  if (field && field === filter()) return inFilter(event);
  if (field) {
    const send = field.matches("textarea") && event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (send && !event.repeat && field.form) { event.preventDefault(); field.form.requestSubmit(); }
    return;
  }
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || busy) return;
  for (const key of [event.key, event.key.toLowerCase()]) {
    const target = page().querySelector(`[aria-keyshortcuts~="${CSS.escape(key)}"]`);
    if (target) { event.preventDefault(); press(target); return; }
  }
});

begin();
