"use strict";
// One row at a time; every decision is saved before the next row is shown.

const $ = (id) => document.getElementById(id);
let rows = [];
let place = 0;
const past = []; // rows decided on, newest last
const name = () => $("reviewer").value.trim();
const mine = (row) => row.reviews?.[name()];

function element(tag, text, kind = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

async function ask(path, content) {
  const settings = content === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content),
  };
  const answer = await fetch(path, settings);
  const text = await answer.text();
  if (!answer.ok) {
    let detail = text;
    try { detail = JSON.parse(text).detail ?? text; } catch { /* it is no JSON */ }
    throw new Error(detail.slice(0, 300));
  }
  return JSON.parse(text);
}

function tell(error) {
  $("trouble").hidden = !error;
  $("trouble").textContent = error ? String(error.message ?? error) : "";
}

const shown = () => rows.map((row, at) => [row, at])
  .filter(([row]) => !$("open-only").checked || !mine(row)).map(([, at]) => at);

function show() {
  const row = rows[place];
  const done = rows.filter(mine).length;
  $("progress").max = Math.max(1, rows.length);
  $("progress").value = done;
  $("count").textContent = `${done} of ${rows.length} decided`;
  $("row").hidden = !row;
  $("none").hidden = Boolean(row);
  $("correction").hidden = true;
  if (!row) return;
  $("mark").textContent = row.mark.replace("_", " ");
  $("why").textContent = row.why;
  $("question").textContent = row.question_shown;
  $("answer").textContent = row.answer_shown;
  $("note").value = mine(row)?.note ?? "";
  for (const kind of ["accept", "correct", "reject"]) {
    $(kind).setAttribute("aria-pressed", String(mine(row)?.decision === kind));
  }
  const others = Object.entries(row.reviews ?? {}).filter(([who]) => who !== name());
  // Who has not decided is not told what the other said.
  $("others").textContent = mine(row) ? others.map(([who, said]) =>
    `${who}: ${said.decision}${said.answer ? ` (${said.answer})` : ""}`).join(" · ") : "";
  $("samples").replaceChildren(...(row.samples ?? []).map((each) =>
    element("div", each.text, `answer ${each.right ? "right" : "wrong"}`)));
}

function showAgreement(found) {
  $("agreement").hidden = !found.length;
  $("agreement").querySelector("tbody").replaceChildren(...found.map((each) => {
    const line = document.createElement("tr");
    const kappa = each.kappa === null ? "–" : each.kappa.toFixed(2);
    line.append(element("td", `${each.first}, ${each.second}`), element("td", String(each.rows)),
      element("td", `${(100 * each.share).toFixed(0)} %`), element("td", kappa));
    return line;
  }));
}

async function load() {
  const told = await ask(`rows?reviewer=${encodeURIComponent(name())}`);
  rows = told.rows;
  $("file").textContent = `${told.file}: ${rows.length} flagged of ${told.all}`;
  showAgreement(told.agreements);
}

function move(by) {
  const open = shown();
  const at = by > 0 ? open.find((each) => each > place) ?? open[0] : open.filter((each) => each < place).at(-1) ?? open.at(-1);
  place = at ?? ($("open-only").checked ? rows.length : place);
  show();
}

async function save(row, review) {
  if (!name()) {
    $("reviewer").focus();
    throw new Error("say who reviews, first");
  }
  $("saved").textContent = "saving";
  $("saved").className = "chip";
  try {
    const kept = await ask(`rows/${encodeURIComponent(row.id)}/review`, { reviewer: name(), review });
    rows[rows.findIndex((each) => each.id === row.id)] = kept;
    $("saved").textContent = "saved";
    $("saved").className = "chip good";
    tell(null);
  } catch (error) {
    $("saved").textContent = "not saved";
    $("saved").className = "chip bad";
    throw error;
  }
}

async function decide(decision, answer = null) {
  const row = rows[place];
  if (!row) return;
  await save(row, { decision, answer, note: $("note").value });
  past.push(row.id);
  const from = place;
  move(1);
  if (rows[from] && shown().length === 0) place = rows.length;
  ask("rows").then((told) => showAgreement(told.agreements));
  show();
}

async function undo() {
  const id = past.pop();
  const at = rows.findIndex((each) => each.id === id);
  if (at < 0) return;
  await save(rows[at], null);
  place = at;
  show();
}

function correct() {
  $("correction").hidden = false;
  $("corrected").value = mine(rows[place])?.answer ?? rows[place].answer;
  $("corrected").select();
}

const KEYS = {
  a: () => decide("accept"), r: () => decide("reject"), c: async () => correct(), z: undo,
  j: async () => move(1), k: async () => move(-1),
  n: async () => $("note").focus(),
  u: async () => { $("open-only").checked = !$("open-only").checked; move(1); },
};
addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    $("correction").hidden = true;
    document.activeElement.blur();
  }
  if (event.target.matches("input:not([type=checkbox])") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]().catch(tell);
  }
});
$("correction").addEventListener("submit", (event) => {
  event.preventDefault();
  decide("correct", $("corrected").value).catch(tell);
  document.activeElement.blur();
});
$("leave").addEventListener("click", () => { $("correction").hidden = true; });
for (const [id, key] of [["accept", "a"], ["reject", "r"], ["correct", "c"], ["undo", "z"], ["before", "k"], ["next", "j"]]) {
  $(id).addEventListener("click", () => KEYS[key]().catch(tell));
}
$("open-only").addEventListener("change", () => move(1));
$("note").addEventListener("keydown", (event) => { if (event.key === "Enter") document.activeElement.blur(); });
$("reviewer").value = localStorage.getItem("interlock-reviewer") ?? "";
$("reviewer").addEventListener("change", () => {
  localStorage.setItem("interlock-reviewer", name());
  load().then(() => { place = -1; move(1); }).catch(tell);
});
load().then(() => { place = -1; move(1); if (!name()) $("reviewer").focus(); }).catch(tell);
