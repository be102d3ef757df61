// What is shown: runs, where the chosen one is, its fleet, answers and events; and the news of all.

const runs = []; // as the server tells them, with `shown`
let chosen = 0; // whose figures, workers, answers and events are shown
let step = null; // [stage, step] of the rollouts; null: the newest, and it moves on
let neighbours = {};
let problem = 0;
const GOOD = { running: "good", finished: "good", failed: "bad", gone: "bad", unreadable: "bad" };

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${answer.status} ${(await answer.text()).slice(0, 200)}`);
  return answer.json();
}

const behind = new Map(); // of runs that are being loaded: the news that came meanwhile

async function load(number) {
  if (behind.has(number)) return behind.get(number).push({ run: number, again: true });
  const news = [];
  behind.set(number, news);
  let told;
  try {
    told = await ask(`runs/${number}`);
  } finally {
    behind.delete(number);
  }
  const order = (events) => events.slice().reverse();
  runs[number] = { ...told, events: order(told.events), shown: runs[number]?.shown ?? true };
  const again = news.findLastIndex((each) => each.again);
  const rest = news.slice(again + 1);
  if (again >= 0) {
    const loaded = load(number);
    behind.get(number).push(...rest);
    return loaded;
  }
  const newer = (each) => each.x >= told.x && each.event_count >= told.event_count;
  rest.filter((each) => each.generation === told.generation && newer(each)).forEach(take);
}

function take(news) {
  if (behind.has(news.run)) return behind.get(news.run).push(news);
  const run = runs[news.run];
  if (news.again || !run) return load(news.run).then(show);
  const { series, events, ...rest } = news;
  const fresh = Math.max(0, news.event_count - run.event_count); // a stream that is opened anew repeats
  Object.assign(run, rest);
  for (const [name, points] of Object.entries(series)) {
    const own = run.series[name];
    // The first bucket that is told of may be the last of those that are here, with more in it.
    const kept = own?.x.findLastIndex((x) => x < points.x[0]) ?? -1;
    run.series[name] = Object.fromEntries(["x", "y", "low", "high"].map(
      (column) => [column, [...(own?.[column].slice(0, kept + 1) ?? []), ...points[column]]]));
  }
  run.events = [...(fresh ? events.slice(-fresh) : []).reverse(), ...run.events].slice(0, 200);
  show();
  if (news.run === chosen && step === null) later(showRollouts);
  if (news.run === chosen && series.accuracy) later(showHeldOut);
}

// Answers are asked for once the charts are drawn, and at most so often.
const waiting = new Set();
function later(work) {
  if (waiting.has(work)) return;
  waiting.add(work);
  setTimeout(() => { waiting.delete(work); work().catch(() => {}); }, 700);
}

let frame = 0;
function show() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    showRuns();
    showFacts();
    showFleet();
    showEvents();
    draw(runs.filter((run) => run?.shown));
  });
}

function showRuns() {
  $("runs").replaceChildren(...runs.map((run, number) => {
    const dot = element("span", { class: "dot" });
    dot.style.background = colour(number);
    return element("button", {
      class: "quiet", "aria-pressed": String(run.shown), "aria-current": String(number === chosen),
      title: [`${run.name}: ${run.status}`, run.trouble].filter(Boolean).join(" · "),
      on: () => choose(number),
    }, dot, element("span", { class: "name", text: run.name }),
      element("span", { class: `chip ${GOOD[run.status] ?? ""}`, text: run.status }),
      // Said in full of the chosen run alone.
      ...(run.trouble ? [element("span", { class: "chip bad", text: "!" })] : []));
  }));
  const run = runs[chosen];
  document.title = `${run.name} · Interlock`;
  const said = run.trouble || run.reason;
  $("trouble").hidden = !said;
  $("trouble").textContent = said;
}

const last = (run, name) => run.newest[name];

function showFacts() {
  const run = runs[chosen];
  const facts = [
    ["held-out accuracy", percent(last(run, "accuracy"))],
    ["reward", short(last(run, "rollout.reward"))],
    [`stage ${run.stage}: ${run.stages[run.stage] ?? ""}`, `step ${run.step.toLocaleString("en")}`],
    ["still to go", run.status === "running" ? duration(run.seconds_left) : "–"],
    ["since it began", run.began ? duration(endOf(run) - run.began) : "–"],
    ["chip-hours used", short(run.cost?.chip_hours)],
    ["cost so far", money(run.cost?.money, run.cost?.unpriced)],
    ["cost when done", run.status === "running" ? money(run.cost?.money_at_end, run.cost?.unpriced) : "–"],
    ["a step takes", duration(last(run, "seconds.step"))],
    ["tokens per second", short(last(run, "speed"))],
    ["events", run.event_count.toLocaleString("en")],
  ];
  $("facts").replaceChildren(...facts.map(([name, value]) =>
    element("div", { class: "fact" }, element("b", { text: value }), element("span", { text: name }))));
}

/** Amounts by currency; what has no price is said to be unknown. */
function money(amounts, unpriced) {
  if (!amounts) return "–";
  const known = Object.entries(amounts).map(([currency, amount]) => `${short(amount)} ${currency}`);
  return [...known, ...(unpriced ? [known.length ? "unknown" : "no price"] : [])].join(" + ") || "–";
}

const endOf = (run) => run.status === "running" ? Date.now() / 1000 : run.ended ?? run.began;

function showFleet() {
  const workers = Object.entries(runs[chosen].workers);
  $("fleet").hidden = !workers.length;
  const bad = { quarantined: "bad", retired: "bad", qualifying: "", restarting: "" };
  $("workers").replaceChildren(...workers.map(([name, facts]) => {
    const speed = facts.seconds_generating > 0 ? facts.tokens / facts.seconds_generating : null;
    const cell = (text, number) => element("td", { text: text ?? "–", class: number ? "number" : "" });
    const state = element("td", {}, element("span", { class: `chip ${bad[facts.state] ?? "good"}`, text: facts.state }));
    return element("tr", {}, cell(name), state, cell(facts.device), cell(facts.trust),
      cell(facts.weight_version, true), cell(facts.groups, true), cell(short(speed), true),
      cell(short(last(runs[chosen], `workers/${name}/k3`)), true), cell(facts.restarts, true));
  }));
}

function showEvents() {
  const run = runs[chosen];
  $("event-count").textContent = run.event_count ? run.event_count.toLocaleString("en") : "none";
  $("kinds").textContent = Object.entries(run.kinds).map(([kind, count]) => `${kind}: ${count}`).join(" · ");
  $("events").replaceChildren(...run.events.map((event) => element("li", {},
    element("span", { class: "soft", text: clock(event.time) + " " }),
    element("b", { text: event.name + " " }), event.message)));
}

function answerOf(answer, children) {
  const facts = [answer.cause ?? `reward ${short(answer.reward)}`, answer.cut ? "cut" : ""];
  return element("div", { class: `answer ${answer.right ? "right" : "wrong"}` },
    element("p", {}, ...children),
    element("small", { text: facts.filter(Boolean).join(" · ") }));
}

/** Of answers: what of them is damaged, and so not shown. */
const damaged = (told) => told.damage ? [element("p", { class: "note", text: told.damage })] : [];

async function showRollouts() {
  const where = step ? `?stage=${step[0]}&step=${step[1]}` : "";
  const told = await ask(`runs/${chosen}/rollouts${where}`);
  neighbours = told;
  $("place").textContent = told.at ? `stage ${told.at[0]}, step ${told.at[1]}` : "none yet";
  $("older").disabled = !told.before;
  $("newer").disabled = !told.next;
  $("rollouts").replaceChildren(...damaged(told), ...told.groups.map((group) => element("article", {},
    element("p", { class: "question", text: group.question }),
    element("p", { class: "soft", text: `answer: ${group.reference}` + (group.left_out ? ` · ${group.left_out} more` : "") }),
    element("div", { class: "answers" }, ...group.answers.map((each) => answerOf(each, [each.text]))))));
}

async function showHeldOut() {
  const told = await ask(`runs/${chosen}/held-out?problem=${problem}`);
  if (told.problems) problem = ((problem % told.problems) + told.problems) % told.problems;
  $("problem").textContent = told.problems ? `${problem + 1} of ${told.problems}` : "none yet";
  const [first] = told.evaluations;
  const tags = { gone: "del", new: "ins", same: "span" };
  $("held-out").replaceChildren(...damaged(told),
    ...(first ? [element("p", { class: "question", text: first.question }),
      element("p", { class: "soft", text: `answer: ${first.reference}` })] : []),
    element("div", { class: "answers" }, ...told.evaluations.map((each) => {
      const words = each.words.map(([kind, text]) => element(tags[kind], { text }));
      const made = answerOf(each, words);
      made.prepend(element("small", { text: `stage ${each.at[0]}, step ${each.at[1]}` }));
      return made;
    })));
}

function answers() {
  for (const work of [showRollouts, showHeldOut]) {
    work().catch((error) => { $("trouble").hidden = false; $("trouble").textContent = String(error); });
  }
}

function choose(number) {
  if (number === chosen) return toggle(number);
  chosen = number;
  runs[number].shown = true;
  step = null;
  show();
  answers();
}

function toggle(number) {
  const run = runs[number];
  if (!run) return;
  if (run.shown && runs.filter((each) => each.shown).length === 1) return; // something is to be seen
  run.shown = !run.shown;
  show();
}

function move(place) {
  if (place === undefined) return;
  step = place;
  showRollouts();
}

const KEYS = {
  "?": () => $("help").showModal(),
  "[": () => neighbours.before && move(neighbours.before),
  "]": () => neighbours.next && move(neighbours.next),
  g: () => move(null),
  "{": () => { problem -= 1; showHeldOut(); },
  "}": () => { problem += 1; showHeldOut(); },
  n: () => choose((chosen + 1) % runs.length),
  r: showAll,
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (/^[1-9]$/.test(event.key)) toggle(Number(event.key) - 1);
  else KEYS[event.key]?.();
});
for (const [id, key] of [["keys", "?"], ["older", "["], ["newer", "]"], ["newest", "g"], ["problem-before", "{"], ["problem-next", "}"]]) {
  $(id).addEventListener("click", KEYS[key]);
}

function connect() {
  const had = runs.map((run) => [run.x, run.event_count, run.generation]);
  const stream = new EventSource("stream?had=" + encodeURIComponent(JSON.stringify(had)));
  stream.onopen = () => {
    $("link").textContent = "live";
    $("link").className = "chip good";
    if (connect.lost) Promise.all(runs.map((_, number) => load(number))).then(show); // what was missed
    connect.lost = false;
  };
  stream.onerror = () => {
    connect.lost = true;
    $("link").textContent = "no connection";
    $("link").className = "chip bad";
  };
  stream.onmessage = (message) => take(JSON.parse(message.data));
}

async function begin() {
  const told = await ask("runs");
  await Promise.all(told.map((_, number) => load(number)));
  show();
  answers();
  connect();
}
begin().catch((error) => { $("trouble").hidden = false; $("trouble").textContent = String(error); });
