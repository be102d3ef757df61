// The model and its replicas.

let model = null;

async function look() {
  try {
    const response = await fetch("/v1/models", { headers: headers(), cache: "no-store" });
    if (response.status === 401) {
      status("needs a key", "");
      if (at("key-form").hidden) {
        askForKey(sessionStorage.getItem(KEY) ? "That key is not one of this server's." : "");
      }
      return;
    }
    if (!response.ok) throw new Error(`${response.status}`);
    show((await response.json()).data);
  } catch {
    status("no answer", "bad");
  }
}

function status(text, kind) {
  at("status").textContent = text;
  at("status").className = `chip ${kind}`;
}

function show(models) {
  model = models[0].id;
  at("model").textContent = model;
  at("model").title = model;
  document.title = `${model} · Interlock`;
  const replicas = models[0].replicas;
  if (!replicas) {
    status("loading", "");
    return;
  }
  const serving = replicas.filter((each) => serves(each)).length;
  if (serving) status("ready", "good");
  else if (replicas.some((each) => each.state === "refused")) status("nothing serves", "bad");
  else status("loading", "");
  at("replicas-count").textContent = `${serving} of ${replicas.length} serving`;
  at("replicas").replaceChildren(...replicas.map(replica));
}

function serves(facts) {
  return facts.state === "ready" || facts.state === "draining";
}

function replica(facts) {
  const kind = { ready: "good", refused: "bad", retired: "bad" }[facts.state] || "";
  const top = made("div", "top", made("strong", "", facts.name),
    made("span", `chip ${kind}`, facts.state));
  const rows = made("dl");
  const row = (name, value) => {
    if (value) rows.append(made("dt", "", name), made("dd", "", value));
  };
  row("device", [facts.device, facts.dtype].filter(Boolean).join(" · "));
  row("engine", facts.engine);
  row("trust", facts.trust);
  row("parity", parity(facts.parity || {}, facts.name));
  row("weights", facts.version == null ? "" : `version ${facts.version}`);
  if (serves(facts)) {
    const speed = facts.tokens_per_s ? ` · ${facts.tokens_per_s.toFixed(0)} tokens/s` : "";
    row("runs", `${facts.running || 0} of ${facts.slots} slots${speed}`);
  }
  row("restarts", facts.restarts ? String(facts.restarts) : "");
  const item = made("li", "", top);
  const warning = (facts.parity || {}).warning;
  if (warning) item.append(made("p", "warn", warning));
  if (facts.reason) item.append(made("p", kind === "bad" ? "bad" : "soft", facts.reason));
  item.append(rows);
  return item;
}

function parity(found, name) {
  if (typeof found.k3 !== "number") return "";
  if (found.reference === name) return "the reference of the others";
  const against = found.reference && found.reference !== "" ? ` against ${found.reference}` : "";
  const count = found.tokens ? ` on ${found.tokens} tokens` : "";
  const band = Array.isArray(found.band) ? `, allowed ${figure(found.band[1])}` : "";
  return `k3 ${figure(found.k3)}${against}${count}${band}`;
}

function figure(value) {
  return value !== 0 && Math.abs(value) < 0.001
    ? value.toExponential(1) : String(Number(value.toPrecision(2)));
}
