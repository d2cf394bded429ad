"use strict";
// Draws the figures of a comparison and keeps them and the tables current while the page is seen.

const PERIOD = 10000; // milliseconds
const figures = document.getElementById("figures");
const notice = document.getElementById("notice");
let drawn = "";

function place(item) {
  const known = document.getElementById(item.key);
  if (known) return known.querySelector(".figure");
  const section = document.createElement("section");
  const heading = document.createElement("h2");
  const caption = document.createElement("p");
  const target = document.createElement("div");
  section.id = item.key;
  heading.textContent = item.title;
  caption.textContent = item.caption;
  target.className = "figure";
  section.append(heading, caption, target);
  figures.append(section);
  return target;
}

async function refresh() {
  const response = await fetch(figures.dataset.source);
  if (!response.ok) throw new Error(`the dashboard answered ${response.status}`);
  const text = await response.text();
  if (text === drawn) return;
  const settings = { responsive: true, displaylogo: false };
  for (const item of JSON.parse(text)) {
    await Plotly.react(place(item), item.figure.data, item.figure.layout, settings);
  }
  if (drawn) await refreshTables();
  drawn = text;
}

async function refreshTables() {
  const response = await fetch(window.location.pathname);
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const tables = document.getElementById("tables");
  const open = tables.querySelector("details").open;
  tables.replaceChildren(...page.getElementById("tables").childNodes);
  tables.querySelector("details").open = open;
}

async function keepCurrent() {
  if (!document.hidden) {
    try {
      await refresh();
      notice.textContent = "";
    } catch (error) {
      notice.textContent = `Not current: ${error.message}.`;
    }
  }
  window.setTimeout(keepCurrent, PERIOD);
}

keepCurrent();
