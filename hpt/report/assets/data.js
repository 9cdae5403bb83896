// Unpacks what hpt/report/rollouts.py packs: an index per run, and the texts of each step on demand.

const KEPT_STEPS = 12; // whose texts stay in memory
const TYPES = { B: Uint8Array, I: Uint32Array, f: Float32Array };

async function unpack(base64) {
  const binary = atob(base64.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// The numbers of a run. draws: a question in a step, with its rollouts from `first` on. functions: rewards by name.
async function readIndex(base64, number) {
  const buffer = await unpack(base64);
  const size = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const run = { number, ...header, draws: {}, rollouts: {}, functions: {} };
  const aligned = (offset) => Math.ceil(offset / 8) * 8;
  let offset = aligned(8 + size);
  for (const [name, code, length] of header.columns) {
    const column = new TYPES[code](buffer, offset, length);
    const [table, ...rest] = name.split(".");
    run[table][rest.join(".")] = column;
    offset = aligned(offset + column.byteLength);
  }
  addDerived(run);
  return run;
}

function addDerived(run) {
  const { draws, rollouts } = run;
  draws.first = new Uint32Array(draws.count.length);
  draws.place = new Uint32Array(draws.count.length); // among the draws of its step
  rollouts.draw = new Uint32Array(rollouts.status.length);
  let next = 0;
  for (let draw = 0; draw < draws.count.length; draw++) {
    draws.first[draw] = next;
    draws.place[draw] = draw && draws.step[draw] === draws.step[draw - 1] ? draws.place[draw - 1] + 1 : 0;
    rollouts.draw.fill(draw, next, next + draws.count[draw]);
    next += draws.count[draw];
  }
  run.gates = [...new Set(Array.from(draws.alpha, (_, draw) => gateOf(run, draw)))];
  draws.gate = Uint8Array.from(draws.alpha, (_, draw) => run.gates.indexOf(gateOf(run, draw)));
}

// What the gate lets a question train on.
function gateOf(run, draw) {
  const { alpha, beta, off, trained } = run.draws;
  if (!trained[draw]) return "left out";
  const signals = [alpha[draw] > 0 && "RL", beta[draw] > 0 && "SFT", off[draw] > 0 && "off-policy"];
  return signals.filter(Boolean).join(" + ") || "nothing";
}

const loaded = new Map(); // "run/step" -> promise of its texts
const waiting = new Map(); // "run/step" -> function that takes the packed texts from a file of the folder

window.hptTexts = (key, base64) => waiting.get(key)?.(base64);

// The texts of the questions and rollouts of a step, as a list of draws.
function readTexts(number, step) {
  const key = `${number}/${step}`;
  if (!loaded.has(key)) {
    if (loaded.size >= KEPT_STEPS) loaded.delete(loaded.keys().next().value);
    const texts = packedTexts(key, number, step)
      .then(unpack)
      .then((buffer) => JSON.parse(new TextDecoder().decode(buffer)));
    texts.catch(() => loaded.delete(key));
    loaded.set(key, texts);
  }
  return loaded.get(key);
}

function packedTexts(key, number, step) {
  const inPage = document.getElementById(`texts-${number}-${step}`);
  if (inPage) return Promise.resolve(inPage.textContent);
  // A page that is opened as a file may not fetch another file, but it may run it as a script.
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `report-data/${number}/step-${String(step).padStart(6, "0")}.js`;
    waiting.set(key, resolve);
    script.onerror = () => reject(new Error(`${script.getAttribute("src")} is not beside this page`));
    script.onload = () => {
      waiting.delete(key);
      script.remove();
    };
    document.head.append(script);
  });
}
