// The browser of rollouts: a form of filters, a list in pages, and a panel with what is chosen in the list.

const PER_PAGE = 50;
const browser = document.getElementById("rollouts");
const form = browser.querySelector("form");
const list = browser.querySelector(".list");
const panel = browser.querySelector(".panel");
const state = { run: null, kept: new Uint32Array(0), page: 0, sort: { by: "step", descending: false }, chosen: -1 };
let runs = [];

async function start() {
  list.append(make("table", {}, make("thead", {}, make("tr")), make("tbody")));
  const indexes = [...document.querySelectorAll("script.rollout-index")];
  runs = await Promise.all(indexes.map((script, place) => readIndex(script.textContent, place)));
  const withRollouts = runs.filter((run) => run.rollouts.status.length);
  form.elements.run.append(...withRollouts.map((run) => new Option(run.name, run.number)));
  form.elements.run.closest("label").hidden = withRollouts.length < 2;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", (event) => (event.target.name === "run" ? chooseRun(runs[event.target.value]) : update()));
  form.addEventListener("reset", () => setTimeout(update)); // after the fields have their values
  browser.querySelector(".presets").addEventListener("click", (event) => applyPreset(event.target.dataset));
  browser.addEventListener("keydown", moveByKey);
  window.addEventListener("hashchange", followLink);
  if (matchMedia("(max-width: 820px)").matches) browser.querySelector("details.filters").open = false;
  chooseRun(withRollouts[0]);
  followLink();
  browser.dataset.ready = "true";
}

function chooseRun(run) {
  state.run = run;
  form.elements.run.value = run.number;
  fillChoices("status", run.statuses);
  fillChoices("grade", run.grades);
  fillChoices("gate", run.gates);
  form.elements.grade.closest("label").hidden = run.grades.length < 2;
  const fields = Object.entries(quantitiesOf(run)).map(([name, { title }]) => rangeField(name, title));
  form.querySelector(".ranges").replaceChildren(...fields);
  if (!(state.sort.by in quantitiesOf(run))) state.sort = { by: "step", descending: false };
  update();
}

function fillChoices(name, values) {
  const options = values.map((value, place) => new Option(shown(value) || "none", place));
  form.elements[name].replaceChildren(new Option("any", ""), ...options);
}

function rangeField(name, title) {
  const input = (end) =>
    make("input", { type: "number", step: "any", name: `${end} ${name}`, placeholder: end, "aria-label": `${title}, ${end}` });
  return make("fieldset", {}, make("legend", {}, title), input("least"), input("most"));
}

function readForm() {
  const number = (name) => (form.elements[name].value === "" ? null : Number(form.elements[name].value));
  const choices = Object.fromEntries(["status", "grade", "gate", "ended"].map((name) => [name, number(name)]));
  const names = Object.keys(quantitiesOf(state.run));
  const ranges = Object.fromEntries(names.map((name) => [name, [number(`least ${name}`), number(`most ${name}`)]]));
  return { choices, ranges, question: form.elements.question.value.trim() };
}

function update() {
  state.kept = sortRollouts(state.run, filterRollouts(state.run, readForm()), state.sort);
  state.page = 0;
  showList();
}

// Each preset is a question that one has about a run.
function applyPreset({ preset }) {
  if (!preset) return;
  const place = (values, value) => (values.includes(value) ? String(values.indexOf(value)) : "");
  form.reset();
  state.sort = { by: "step", descending: true };
  if (preset === "wrong") Object.assign(form.elements.ended, { value: "0" });
  if (preset === "wrong") form.elements.status.value = place(state.run.statuses, "incorrect");
  if (preset === "unparsable") form.elements.status.value = place(state.run.statuses, "unparsable");
  if (preset === "truncated") form.elements.ended.value = "1";
  if (preset === "sft") form.elements.gate.value = place(state.run.gates, "SFT");
  if (preset === "longest") state.sort = { by: "length", descending: true };
}

const COLUMNS = [
  ["step", "step"],
  [null, "question"],
  [null, "status"],
  ["score", "score"],
  ["reward", "reward"],
  ["advantage", "advantage"],
  ["length", "tokens"],
  [null, "gate"],
];

function showList() {
  const { run, kept, page, sort } = state;
  const total = run.rollouts.status.length;
  browser.querySelector(".count").textContent = `${kept.length.toLocaleString("en")} of ${total.toLocaleString("en")} rollouts`;
  const quantities = quantitiesOf(run);
  const columns = COLUMNS.filter(([name]) => name === null || name in quantities);
  if (!columns.some(([name]) => name === sort.by)) columns.push([sort.by, quantities[sort.by].title]);
  list.querySelector("thead tr").replaceChildren(...columns.map(([name, title]) => heading(name, title)));
  const own = kept.subarray(page * PER_PAGE, (page + 1) * PER_PAGE);
  list.querySelector("tbody").replaceChildren(...Array.from(own, (i) => row(i, columns, quantities)));
  showPages();
}

function heading(name, title) {
  const { sort } = state;
  const cell = make("th", { scope: "col", class: `column-${title}` });
  if (name === null) {
    cell.textContent = title;
    return cell;
  }
  const sorted = sort.by === name;
  cell.setAttribute("aria-sort", !sorted ? "none" : sort.descending ? "descending" : "ascending");
  const choose = () => {
    state.sort = { by: name, descending: sorted ? !sort.descending : name !== "step" };
    update();
    list.querySelector(`th.column-${CSS.escape(title)} button`).focus();
  };
  cell.append(make("button", { type: "button", onclick: choose }, `${title}${sorted ? (sort.descending ? " ↓" : " ↑") : ""}`));
  return cell;
}

function row(i, columns, quantities) {
  const { run } = state;
  const draw = run.rollouts.draw[i];
  const cells = columns.map(([name, title]) => {
    const cell = make("td", { class: `column-${title}` });
    if (title === "question") {
      const id = shown(run.ids[run.draws.question[draw]]);
      cell.append(make("a", { href: rolloutLink(run, i), title: id }, id));
    } else if (title === "status") cell.append(statusChip(run, i), run.rollouts.truncated[i] ? " ✂" : "");
    else cell.textContent = title === "gate" ? run.gates[run.draws.gate[draw]] : number(quantities[name].at(i), 4);
    return cell;
  });
  const element = make("tr", { "data-rollout": i, "aria-selected": i === state.chosen ? "true" : null }, ...cells);
  element.addEventListener("click", () => (location.hash = rolloutLink(run, i)));
  return element;
}

function showPages() {
  const pages = Math.max(1, Math.ceil(state.kept.length / PER_PAGE));
  const turn = (by) => () => {
    state.page += by;
    showList();
    list.scrollTop = 0;
  };
  const button = (title, by, possible) =>
    make("button", { type: "button", onclick: turn(by), disabled: !possible }, title);
  browser
    .querySelector(".pages")
    .replaceChildren(
      button("previous", -1, state.page > 0),
      `page ${(state.page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`,
      button("next", 1, state.page < pages - 1),
    );
}

// Opens what the address names: #rollout=RUN.ROLLOUT or #question=RUN.QUESTION, by position. Without one, the first.
function followLink() {
  const link = location.hash.match(/^#(rollout|question)=(\d+)\.(\d+)$/);
  const run = link ? runs[Number(link[2])] : state.run;
  const place = link ? Number(link[3]) : state.kept[0];
  if (!run || place === undefined) return;
  if (run !== state.run) chooseRun(run);
  if (link?.[1] === "question" && place < run.ids.length) {
    panel.dataset.shown = location.hash;
    showHistory(panel, run, place);
    reveal();
  } else if (link?.[1] !== "question" && place < run.rollouts.status.length) {
    state.chosen = place;
    for (const element of list.querySelectorAll("tbody tr")) {
      element.toggleAttribute("aria-selected", false);
      if (Number(element.dataset.rollout) !== place) continue;
      element.setAttribute("aria-selected", "true");
      showInList(element);
    }
    panel.dataset.shown = rolloutLink(run, place);
    panel.scrollTop = 0;
    showRollout(panel, run, place, form.elements.formulas.checked).then(() => link && reveal());
  }
}

// Scrolls the list, and not the page, until a row of it is seen.
function showInList(row) {
  const above = row.offsetTop - 40; // below the names of the columns
  const below = row.offsetTop + row.offsetHeight - list.clientHeight;
  list.scrollTop = Math.max(below, Math.min(above, list.scrollTop));
}

// Where the panel is below the list, it is brought into view.
function reveal() {
  if (matchMedia("(max-width: 820px)").matches) panel.scrollIntoView({ block: "start" });
}

// Down and up, or j and k: the next and the previous rollout of the list.
function moveByKey(event) {
  if (event.target.closest("input, select, .panel .passage") || event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const next = Math.max(0, state.kept.indexOf(state.chosen) + by);
  if (next >= state.kept.length) return;
  const page = Math.floor(next / PER_PAGE);
  if (page !== state.page) {
    state.page = page;
    showList();
  }
  location.hash = rolloutLink(state.run, state.kept[next]);
  list.querySelector(`tr[data-rollout="${state.kept[next]}"] a`).focus({ preventScroll: true });
}

form.elements.formulas.addEventListener("change", () => {
  if (panel.dataset.shown?.startsWith("#rollout")) followLink();
});

start();
