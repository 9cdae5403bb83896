// One rollout with its question, and the history of a question over the run.

const number = (value, digits = 3) =>
  Number.isNaN(value) ? "–" : Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
const rolloutLink = (run, i) => `#rollout=${run.number}.${i}`;
const questionLink = (run, question) => `#question=${run.number}.${question}`;

function statusChip(run, i) {
  const status = run.statuses[run.rollouts.status[i]];
  return make("span", { class: `chip ${status}` }, status);
}

async function showRollout(panel, run, i, formulas) {
  const { draws, rollouts } = run;
  const draw = rollouts.draw[i];
  const step = draws.step[draw];
  panel.setAttribute("aria-busy", "true");
  const texts = await readTexts(run.number, step).catch((error) => error);
  panel.setAttribute("aria-busy", "false");
  if (panel.dataset.shown !== rolloutLink(run, i)) return; // another one was chosen meanwhile
  if (texts instanceof Error) {
    panel.replaceChildren(make("p", { class: "failed" }, `The texts of step ${step} cannot be read: ${texts.message}`));
    return;
  }
  const { prompt, answer, demonstration, responses } = texts[draws.place[draw]];
  const response = responses[i - draws.first[draw]];
  const question = draws.question[draw];
  panel.replaceChildren(
    make("h3", { tabindex: "-1" }, `Step ${step}, question ${shown(run.ids[question])}`),
    make("p", { class: "label" }, ...drawFacts(run, draw), " · ", historyLink(run, question)),
    siblings(run, draw, i),
    facts(run, i, response, answer, formulas),
    make("h4", {}, "response", rollouts.truncated[i] ? make("span", { class: "chip timeout" }, "truncated") : null),
    textBox(response, { box: lastBox(response), formulas, collapse: true }),
    make("h4", {}, "question"),
    textBox(prompt, { formulas }),
  );
  if (demonstration !== null) {
    panel.append(make("h4", {}, "demonstration, which this step trained on"));
    panel.append(textBox(demonstration, { box: lastBox(demonstration), formulas, collapse: true }));
  }
}

function drawFacts(run, draw) {
  const { draws } = run;
  const grade = run.grades[draws.grade[draw]];
  const weights = `α = ${number(draws.alpha[draw])}, β = ${number(draws.beta[draw])}`;
  const facts = [grade && `grade ${shown(grade)}`, `P = ${number(draws.P[draw])}`, `gate: ${run.gates[draws.gate[draw]]} (${weights})`];
  return [facts.filter(Boolean).join(" · ")];
}

function historyLink(run, question) {
  const times = run.draws.question.reduce((count, other) => count + (other === question), 0);
  return make("a", { href: questionLink(run, question) }, times > 1 ? `drawn in ${times} steps: history` : "history");
}

// Links to all rollouts of the same draw.
function siblings(run, draw, chosen) {
  const { first, count } = run.draws;
  const links = Array.from({ length: count[draw] }, (_, k) => {
    const i = first[draw] + k;
    const status = run.statuses[run.rollouts.status[i]];
    const label = `rollout ${k + 1} of ${count[draw]}, ${status}`;
    const current = i === chosen ? "true" : null;
    return make("a", { href: rolloutLink(run, i), class: `chip ${status}`, "aria-label": label, title: label, "aria-current": current }, `${k + 1}`);
  });
  return make("nav", { class: "siblings", "aria-label": "rollouts of this question" }, "rollouts ", ...links);
}

function facts(run, i, response, answer, formulas) {
  const { rollouts, functions } = run;
  const list = make("dl", { class: "facts" });
  const add = (name, ...value) => list.append(make("div", {}, make("dt", {}, name), make("dd", {}, ...value)));
  const box = lastBox(response);
  add("status", statusChip(run, i));
  if (box) add("last box", short(response.slice(box[0] + "\\boxed{".length, box[1] - 1), formulas));
  add("right answer", answer === null ? "none" : short(answer, formulas));
  add("score", number(rollouts.score[i]));
  add("reward", number(rollouts.reward[i]));
  for (const [name, values] of Object.entries(functions)) add(name, number(values[i]));
  add("advantage", number(rollouts.advantage[i]));
  add("tokens", rollouts.length[i].toLocaleString("en"));
  return list;
}

// An answer, drawn where it looks like LaTeX.
function short(text, formulas) {
  return formulas && /[\\^_]/.test(text) ? formula(text, text, false, false) : shown(text);
}

function showHistory(panel, run, question) {
  const { draws, rollouts } = run;
  const own = Array.from(draws.question.keys()).filter((draw) => draws.question[draw] === question);
  const right = run.statuses.indexOf("correct");
  const rows = own.map((draw) => {
    const statuses = rollouts.status.subarray(draws.first[draw], draws.first[draw] + draws.count[draw]);
    const step = draws.count[draw]
      ? make("a", { href: rolloutLink(run, draws.first[draw]) }, `${draws.step[draw]}`)
      : `${draws.step[draw]}`;
    const cells = [step, `${statuses.filter((status) => status === right).length} of ${statuses.length}`];
    cells.push(number(draws.P[draw]), run.gates[draws.gate[draw]]);
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
  const names = ["step", "right", "P", "gate"].map((name) => make("th", { scope: "col" }, name));
  panel.replaceChildren(
    make("h3", { tabindex: "-1" }, `Question ${shown(run.ids[question])} over the run`),
    historyChart(run, own),
    make("table", {}, make("thead", {}, make("tr", {}, ...names)), make("tbody", {}, ...rows)),
  );
}

// P of a question at the steps that drew it.
function historyChart(run, own) {
  const width = 480, height = 130, left = 30, bottom = 22, top = 8;
  const svg = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const last = run.draws.step[run.draws.step.length - 1];
  const x = (step) => left + ((width - left - 10) * step) / Math.max(1, last);
  const y = (P) => top + (height - top - bottom) * (1 - P);
  const known = own.filter((draw) => !Number.isNaN(run.draws.P[draw]));
  const points = known.map((draw) => [x(run.draws.step[draw]), y(run.draws.P[draw])]);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "history", role: "img", "aria-label": "P at each step that drew the question" });
  for (const P of [0, 0.5, 1]) {
    chart.append(svg("line", { x1: left, x2: width - 10, y1: y(P), y2: y(P), class: "grid" }));
    chart.append(svg("text", { x: left - 6, y: y(P) + 4, "text-anchor": "end" }, `${P}`));
  }
  for (const [step, anchor] of [[0, "start"], [last, "end"]]) {
    chart.append(svg("text", { x: x(step), y: height - 4, "text-anchor": anchor }, `step ${step}`));
  }
  chart.append(svg("polyline", { points: points.map((point) => point.join()).join(" ") }));
  for (const [cx, cy] of points) chart.append(svg("circle", { cx, cy, r: 4 }));
  return chart;
}
