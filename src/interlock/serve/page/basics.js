"use strict";
// The page talks to its own server alone. Whatever a model or a server says becomes a text node,
// never HTML. The key comes in the URL's fragment, which browsers do not send, and is kept for
// this tab.

const at = (id) => document.getElementById(id);
const KEY = "interlock-key";
const LOOK_MS = 5000;

function made(tag, className, ...inside) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...inside);
  return element;
}

// The key.

function takeKey() {
  const given = location.hash.slice(1);
  if (!given || given === "say") return;
  try {
    sessionStorage.setItem(KEY, decodeURIComponent(given.replace(/^key=/, "")));
  } catch {
    // A fragment that is no key; the form asks for one.
  }
  history.replaceState(null, "", location.pathname);
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function askForKey(said) {
  at("key-form").hidden = false;
  at("key-wrong").textContent = said;
  at("key").focus();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("key").value = "";
  at("key-form").hidden = true;
  look();
  at("say").focus();
});

// Words: text, and code that is marked as such.

function words(text) {
  const box = made("div", "words");
  write(box, text);
  return box;
}

function write(box, text) {
  const parts = [];
  text.split(/^```/m).forEach((piece, index, all) => {
    if (index % 2 === 0) {
      if (index) piece = piece.replace(/^[ \t]*\n{0,2}/, "");
      if (index < all.length - 1) piece = piece.replace(/\n{1,2}$/, "");
      parts.push(...inline(piece));
      return;
    }
    const code = piece.replace(/^[^\n`]*(\n|$)/, "").replace(/\n$/, "");
    parts.push(made("pre", "", made("code", "", code)));
  });
  box.replaceChildren(...parts);
}

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).filter(Boolean).map((piece) => {
    if (/^`[^`\n]+`$/.test(piece)) return made("code", "", piece.slice(1, -1));
    if (/^\*\*[^*\n]+\*\*$/.test(piece)) return made("strong", "", piece.slice(2, -2));
    return piece;
  });
}
