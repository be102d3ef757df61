// The conversation.

const turns = []; // as they are sent: {role, content, reasoning_content?}
let running = null; // AbortController of the answer that comes

function atEnd() {
  const log = at("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function toEnd() {
  at("log").scrollTop = at("log").scrollHeight;
}

function settings() {
  const form = new FormData(at("settings"));
  const asked = {};
  for (const name of ["temperature", "top_p", "top_k", "min_p", "max_completion_tokens", "seed",
    "thinking_budget"]) {
    if (form.get(name) !== "") asked[name] = Number(form.get(name));
  }
  if (form.get("thinking")) {
    asked.chat_template_kwargs = { enable_thinking: form.get("thinking") === "on" };
  }
  return asked;
}

function messages() {
  const system = new FormData(at("settings")).get("system").trim();
  return system ? [{ role: "system", content: system }, ...turns] : turns;
}

class Answer {
  // What is shown of one answer while it comes.
  constructor(asked) {
    this.asked = asked; // the turns that it answers
    this.thought = "";
    this.content = "";
    this.began = performance.now();
    this.first = null;
    this.facts = {};
    this.finish = null;
    this.box = made("article", "turn assistant waiting");
    this.box.setAttribute("aria-label", "Answer");
    this.said = words("");
    this.foot = made("div", "foot");
    this.box.append(this.said, this.foot);
    this.drawn = false;
  }

  take(event) {
    if (event.error) throw new Told(event.error.message);
    if (event.usage) this.facts.usage = event.usage;
    if (event.interlock) this.facts.of = event.interlock;
    const choice = event.choices && event.choices[0];
    if (!choice) return;
    const delta = choice.delta || {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (this.first === null && (thought || delta.content)) {
      this.first = performance.now();
    }
    this.thought += thought || "";
    this.content += delta.content || "";
    if (choice.finish_reason) this.finish = choice.finish_reason;
    this.draw();
  }

  draw() {
    if (this.drawn) return;
    this.drawn = true;
    requestAnimationFrame(() => {
      this.drawn = false;
      const follow = atEnd();
      this.drawThought();
      write(this.said, this.content);
      if (follow) toEnd();
    });
  }

  drawThought() {
    if (!this.thought) return;
    if (!this.thinking) {
      this.summary = made("summary", "", "Thinking …");
      this.thinking = made("details", "thought", this.summary, words(""));
      this.thinking.open = true;
      this.summary.addEventListener("click", () => { this.chosen = true; });
      this.box.prepend(this.thinking);
    }
    write(this.thinking.lastChild, this.thought);
    if (this.content || this.finish) {
      this.summary.textContent = "Thought";
      if (!this.chosen) this.thinking.open = false;
      this.chosen = true;
    }
  }

  end(failure) {
    this.box.classList.remove("waiting");
    if (this.thinking) this.summary.textContent = "Thought";
    if (failure) this.box.insertBefore(made("div", "failed", failure), this.foot);
    const ended = performance.now();
    const told = [];
    const of = this.facts.of;
    if (of) {
      const replicas = (of.replicas || []).join(" → ");
      if (replicas) told.push(`by ${replicas}`);
      if (of.version != null) told.push(`weights ${of.version}`);
    }
    const usage = this.facts.usage;
    if (usage && this.first !== null) {
      const seconds = (ended - this.first) / 1000;
      const count = usage.completion_tokens;
      told.push(`${count} tokens`);
      if (count > 1 && seconds > 0) told.push(`${((count - 1) / seconds).toFixed(1)} tokens/s`);
      told.push(`first after ${((this.first - this.began) / 1000).toFixed(2)} s`);
    }
    if (this.finish === "length") told.push("cut off at the limit");
    if (this.stopped) told.push("stopped");
    this.foot.replaceChildren(...told.map((text) => made("span", "", text)));
  }
}

class Told extends Error {} // what the server says is wrong

async function refused(response) {
  if (response.status === 401) {
    askForKey(sessionStorage.getItem(KEY) ? "That key is not one of this server's." : "");
    return "The server wants a key.";
  }
  let said = "";
  try {
    const error = (await response.json()).error;
    said = error.message;
    if ((error.param || "").includes("thinking")) said = `Settings, thinking: ${plain(said)}`;
  } catch {
    said = response.statusText || `status ${response.status}`;
  }
  const again = response.headers.get("Retry-After");
  if (response.status === 429) return `The server is busy: ${said}. Try again in ${again || 1} s.`;
  if (response.status === 503) return `The model is not ready: ${said}.`;
  return said;
}

function plain(said) {
  return said.replace(/^\S+: /, "").replace(/; leave it out$/, ". Leave that empty.");
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split("\n\n");
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:"))
        .map((line) => line.slice(5).trim()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

async function answer() {
  const shown = new Answer([...turns]);
  at("log").append(shown.box);
  toEnd();
  running = new AbortController();
  busy(true);
  let failure = "";
  try {
    const body = { model, messages: messages(), ...settings(), stream: true,
      stream_options: { include_usage: true } };
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify(body), signal: running.signal,
    });
    if (!response.ok) throw new Told(await refused(response));
    let whole = false;
    for await (const event of events(response.body)) {
      shown.take(event);
      whole ||= shown.finish !== null;
    }
    if (!whole) failure = "The answer ended before it was whole.";
  } catch (error) {
    if (error.name === "AbortError") shown.stopped = true;
    else if (error instanceof Told) failure = error.message;
    else failure = "The server does not answer. Is it still running?";
  }
  running = null;
  busy(false);
  keep(shown, failure);
}

function keep(shown, failure) {
  const follow = atEnd();
  shown.drawThought();
  write(shown.said, shown.content);
  shown.end(failure);
  if (shown.content || shown.thought) {
    const turn = { role: "assistant", content: shown.content };
    if (shown.thought) turn.reasoning_content = shown.thought;
    turns.push(turn);
  } else {
    turns.pop(); // what was not answered is not part of the conversation
  }
  const again = made("button", "", "Try again");
  again.type = "button";
  again.addEventListener("click", () => {
    if (running) return;
    turns.splice(0, turns.length, ...shown.asked);
    while (shown.box.nextSibling) shown.box.nextSibling.remove();
    shown.box.remove();
    answer();
  });
  const copy = made("button", "", "Copy");
  copy.type = "button";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(shown.content);
    copy.textContent = "Copied";
  });
  shown.foot.append(again);
  if (shown.content && navigator.clipboard) shown.foot.append(copy);
  at("announce").textContent = failure || shown.content || "The answer is empty.";
  if (follow) toEnd();
}

function busy(on) {
  at("send").hidden = on;
  at("stop").hidden = !on;
  at("clear").hidden = on || !at("log").hasChildNodes();
  at("empty").hidden = at("log").hasChildNodes();
}

function grow() {
  const box = at("say");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

function send() {
  const text = at("say").value;
  if (!text.trim() || running || !model) return;
  if (!at("settings").reportValidity()) {
    at("settings-box").open = true;
    return;
  }
  turns.push({ role: "user", content: text });
  const box = made("article", "turn user", words(text));
  box.setAttribute("aria-label", "You");
  at("log").append(box);
  at("say").value = "";
  grow();
  answer();
}

at("talk").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("say").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("say").addEventListener("input", grow);
at("stop").addEventListener("click", () => {
  if (running) running.abort();
  at("say").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) running.abort();
});
at("clear").addEventListener("click", () => {
  turns.length = 0;
  at("log").replaceChildren();
  busy(false);
  at("say").focus();
});

takeKey();
if (matchMedia("(min-width: 761px)").matches) {
  at("replicas-box").open = true;
  at("say").focus();
}
look();
setInterval(() => { if (!document.hidden) look(); }, LOOK_MS);
