"use strict";
// Elements, numbers and times. All text goes in as text: no answer of a model becomes markup.

const $ = (id) => document.getElementById(id);

function element(tag, settings = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name === "on") made.addEventListener("click", value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const percent = (share) => share == null ? "–" : (100 * share).toFixed(1) + " %";

function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(1);
  return size >= 100 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
}

function duration(seconds) {
  if (seconds == null) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (seconds > 0 && seconds < 9.95) return `${+seconds.toPrecision(2)} s`;
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

const clock = (time) => new Date(1000 * time).toLocaleTimeString();

// Told apart by those who see red and green as one, on light and on dark: Okabe and Ito (2008).
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7a7a7a"];
const colour = (place) => COLOURS[place % COLOURS.length];
const themed = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
