// Which rollouts are listed, and in which order.

// The numbers of a rollout that can be filtered and sorted by: a title, and its value at rollout `i` of a run.
function quantitiesOf(run) {
  const { draws, rollouts } = run;
  const found = {
    step: { title: "step", at: (i) => draws.step[rollouts.draw[i]] },
    score: { title: "score", at: (i) => rollouts.score[i] },
    reward: { title: "reward", at: (i) => rollouts.reward[i] },
    ...Object.fromEntries(
      Object.entries(run.functions).map(([name, values]) => [`function ${name}`, { title: name, at: (i) => values[i] }]),
    ),
    advantage: { title: "advantage", at: (i) => rollouts.advantage[i] },
    length: { title: "tokens", at: (i) => rollouts.length[i] },
    P: { title: "P", at: (i) => draws.P[rollouts.draw[i]] },
  };
  if (rollouts.advantage.every(Number.isNaN)) delete found.advantage; // an older run
  return found;
}

// The rollouts that pass. choices: status, grade, gate and ended, by place or null; ranges: [least, most] by quantity.
function filterRollouts(run, { choices, ranges, question }) {
  const { draws, rollouts } = run;
  const quantities = quantitiesOf(run);
  const bounds = Object.entries(ranges)
    .filter(([name, [least, most]]) => name in quantities && (least !== null || most !== null))
    .map(([name, [least, most]]) => [quantities[name].at, least ?? -Infinity, most ?? Infinity]);
  const asked = question ? run.ids.map((id) => id.toLowerCase().includes(question.toLowerCase())) : null;
  const passes = (i) => {
    const draw = rollouts.draw[i];
    if (choices.status !== null && rollouts.status[i] !== choices.status) return false;
    if (choices.ended !== null && rollouts.truncated[i] !== choices.ended) return false;
    if (choices.grade !== null && draws.grade[draw] !== choices.grade) return false;
    if (choices.gate !== null && draws.gate[draw] !== choices.gate) return false;
    if (asked && !asked[draws.question[draw]]) return false;
    return bounds.every(([at, least, most]) => at(i) >= least && at(i) <= most); // NaN passes no bound
  };
  const kept = new Uint32Array(rollouts.status.length);
  let count = 0;
  for (let i = 0; i < kept.length; i++) if (passes(i)) kept[count++] = i;
  return kept.subarray(0, count);
}

// Sorted by a quantity; unknown values come last, equal ones keep the order of the run.
function sortRollouts(run, kept, { by, descending }) {
  if (by === "step" && !descending) return kept;
  const { at } = quantitiesOf(run)[by];
  const sign = descending ? -1 : 1;
  const keys = new Float64Array(run.rollouts.status.length);
  for (const i of kept) keys[i] = Number.isNaN(at(i)) ? Infinity : sign * at(i);
  return kept.sort((a, b) => keys[a] - keys[b] || a - b);
}
