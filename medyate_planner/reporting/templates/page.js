"use strict";
// Draws, sorts and filters. Every number and text it shows comes from the data block, which Python made.

const data = JSON.parse(document.getElementById("report-data").textContent);
const exact = new Intl.NumberFormat("en-US");
const MOST_COLUMNS = 1500;
const AROUND_PEAK = 40;
document.documentElement.classList.add("js");

// ---- one timeline -------------------------------------------------------------------------------------------------

class Timeline {
  constructor(panel, step) {
    this.panel = panel;
    this.step = step;
    this.count = step.total_bytes.length;
    this.svg = panel.querySelector(".chart");
    this.slider = panel.querySelector(".slider");
    this.cells = new Map([...panel.querySelectorAll("[data-cursor]")].map((cell) => [cell.dataset.cursor, cell]));
    this.rows = [...panel.querySelectorAll("tr[data-category]")];
    this.at = step.peak_index;
    this.windows = this.listWindows();
    this.window = this.windows[0];
    this.sameScale = false;
    this.listen();
    this.moveTo(this.at);
  }

  listWindows() {
    const { phases, peak_index: peak } = this.step;
    const windows = [{ name: "whole step", start: 0, end: this.count }];
    if (this.count > 2 * AROUND_PEAK) {
      const [start, end] = [Math.max(0, peak - AROUND_PEAK), Math.min(this.count, peak + AROUND_PEAK + 1)];
      windows.push({ name: "around the peak", start, end });
    }
    const names = phases.map((phase) => phase.name);
    phases.forEach((phase, index) => {
      const turn = names.slice(0, index + 1).filter((name) => name === phase.name).length;
      const again = names.indexOf(phase.name) !== names.lastIndexOf(phase.name);
      if (phases.length > 1) windows.push({ ...phase, name: again ? `${phase.name} ${turn}` : phase.name });
    });
    return windows;
  }

  listen() {
    const choice = this.panel.querySelector(".window");
    this.windows.forEach((window, index) => choice.append(new Option(window.name, String(index))));
    choice.addEventListener("change", () => {
      this.window = this.windows[Number(choice.value)];
      if (this.at < this.window.start || this.at >= this.window.end) this.at = this.largestIn(this.window);
      this.draw();
    });
    this.panel.querySelector(".to-peak").addEventListener("click", () => {
      const peak = this.step.peak_index;
      if (peak < this.window.start || peak >= this.window.end) choice.value = "0";
      this.window = this.windows[Number(choice.value)];
      this.at = peak;
      this.draw();
    });
    this.slider.addEventListener("input", () => this.moveTo(Number(this.slider.value)));
    const point = (event) => this.moveTo(this.momentUnder(event));
    this.svg.addEventListener("pointermove", point);
    this.svg.addEventListener("pointerdown", point);
  }

  largestIn({ start, end }) {
    let best = start;
    for (let index = start; index < end; index += 1) {
      if (this.step.total_bytes[index] > this.step.total_bytes[best]) best = index;
    }
    return best;
  }

  // The moments that are drawn: all, or the largest of each column, so that no peak is lost.
  columns() {
    const { start, end } = this.window;
    const count = Math.max(1, Math.min(end - start, MOST_COLUMNS, Math.floor(this.frame.width)));
    const edge = (column) => start + Math.floor((column * (end - start)) / count);
    return Array.from({ length: count }, (_, column) => this.largestIn({ start: edge(column), end: edge(column + 1) }));
  }

  draw() {
    const width = this.svg.parentElement.clientWidth || 720;
    const ticks = this.sameScale ? data.common_ticks : this.step.ticks;
    const left = 10 + 6.4 * Math.max(...ticks.map((tick) => tick.text.length));
    const height = width < 560 ? 300 : 380;
    this.frame = { left, top: 26, width: width - left - 10, height: height - 26 - 46, top_bytes: ticks.at(-1).bytes };
    this.shown = this.columns();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const parts = [this.axis(ticks), this.bands(), this.phases(), this.cursor(), this.peak()];
    this.svg.replaceChildren(...parts.filter(Boolean));
    this.slider.min = this.window.start;
    this.slider.max = this.window.end - 1;
    this.moveTo(this.at);
  }

  x(column) {
    return this.frame.left + (column / this.shown.length) * this.frame.width;
  }

  y(bytes) {
    return this.frame.top + this.frame.height * (1 - bytes / this.frame.top_bytes);
  }

  make(name, attributes, ...children) {
    const element = document.createElementNS(this.svg.namespaceURI, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  axis(ticks) {
    const { left, width } = this.frame;
    const group = this.make("g", { class: "axis" });
    for (const tick of ticks) {
      const y = this.y(tick.bytes);
      group.append(this.make("line", { x1: left, x2: left + width, y1: y, y2: y }));
      group.append(this.make("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, tick.text));
    }
    return group;
  }

  // One path per category: along the tops from left to right, back along the bottoms.
  bands() {
    const group = this.make("g", { class: "bands" });
    const bottoms = this.shown.map(() => 0);
    this.step.categories.forEach((category, index) => {
      const bytes = this.step.live_bytes[index];
      const tops = this.shown.map((moment, column) => bottoms[column] + bytes[moment]);
      const there = [];
      const back = [];
      this.shown.forEach((_, column) => {
        const [from, to] = [this.x(column).toFixed(2), this.x(column + 1).toFixed(2)];
        const [top, bottom] = [this.y(tops[column]).toFixed(2), this.y(bottoms[column]).toFixed(2)];
        there.push(`${from},${top} ${to},${top}`);
        back.push(`${to},${bottom} ${from},${bottom}`);
      });
      const d = `M${there.join(" L")} L${back.reverse().join(" L")}Z`;
      group.append(this.make("path", { class: `c-${category.css}`, d }));
      tops.forEach((top, column) => (bottoms[column] = top));
    });
    return group;
  }

  // Wide phases have their names on the first line, narrow ones on the second where there is room.
  phases() {
    const { left, top, width, height } = this.frame;
    const { start, end } = this.window;
    const group = this.make("g", { class: "phases" });
    const place = (moment) => left + (width * (Math.min(Math.max(moment, start), end) - start)) / (end - start);
    let [free, freeBelow] = [left, left]; // where the next name may begin
    const last = this.step.phases.findLast((phase) => phase.start < end);
    this.step.phases.forEach((phase, index) => {
      const [from, to] = [place(phase.start), place(phase.end)];
      if (to <= from) return;
      const strip = { x: from, y: top + height + 5, width: Math.max(to - from - 1, 1), height: 4, class: `p${index % 2}` };
      group.append(this.make("rect", strip));
      if (phase.start > start) group.append(this.make("line", { x1: from, x2: from, y1: top, y2: top + height + 9 }));
      const needed = 6.6 * phase.name.length + 6;
      const wide = to - from >= needed;
      const shifted = from + needed > left + width;
      const at = shifted ? left + width - needed : from;
      const first = wide || (phase === last && at >= free);
      if (!first && at < freeBelow) return;
      if (first) free = at + needed;
      else freeBelow = at + needed;
      const where = { x: shifted ? left + width : at, y: top + height + (first ? 23 : 38) };
      group.append(this.make("text", { ...where, "text-anchor": shifted ? "end" : "start" }, phase.name));
    });
    return group;
  }

  peak() {
    const { peak_index: peak, total_bytes: total } = this.step;
    const column = this.shown.indexOf(peak);
    if (column < 0) return null;
    const [x, y] = [this.x(column + 0.5), this.y(total[peak])];
    const text = `peak ${data.texts[this.step.total_text[peak]]}`;
    const room = 3.4 * text.length + 6;
    const { left, width } = this.frame;
    const anchor = x - left < room ? "start" : left + width - x < room ? "end" : "middle";
    return this.make(
      "g",
      { class: "peak", "data-peak-bytes": total[peak] },
      this.make("circle", { cx: x, cy: y, r: 4 }),
      this.make("text", { x, y: y - 10, "text-anchor": anchor }, text),
    );
  }

  cursor() {
    const { top, height } = this.frame;
    this.line = this.make("line", { class: "cursor-line", y1: top, y2: top + height });
    return this.line;
  }

  momentUnder(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) * this.svg.viewBox.baseVal.width) / box.width;
    const column = Math.floor(((x - this.frame.left) / this.frame.width) * this.shown.length);
    return this.shown[Math.min(Math.max(column, 0), this.shown.length - 1)];
  }

  moveTo(moment) {
    const { step } = this;
    this.at = moment;
    const phase = step.phases.find((run) => moment < run.end).name;
    const text = (column) => data.texts[column[moment]] || "-";
    const total = text(step.total_text);
    this.cells.get("operator").textContent = text(step.operator);
    this.cells.get("module").textContent = text(step.module);
    this.cells.get("source").textContent = text(step.source);
    this.cells.get("moment").textContent = `${phase}, ${exact.format(moment + 1)} of ${exact.format(this.count)}`;
    this.cells.get("total").replaceChildren(...noted(`${exact.format(step.total_bytes[moment])} B`, total));
    for (const row of this.rows) {
      row.lastElementChild.textContent = `${exact.format(step.live_bytes[row.dataset.category][moment])} B`;
    }
    this.slider.value = moment;
    const where = `${moment + 1}: ${text(step.operator)} ${text(step.module)}`;
    this.slider.setAttribute("aria-valuetext", `${where}, ${phase}, ${total}`);
    if (!this.line) return;
    const { start, end } = this.window;
    const x = this.frame.left + ((moment + 0.5 - start) / (end - start)) * this.frame.width;
    this.line.setAttribute("x1", x);
    this.line.setAttribute("x2", x);
  }
}

function noted(main, note) {
  const [first, second] = [document.createElement("span"), document.createElement("small")];
  first.className = "main";
  first.textContent = main;
  second.textContent = note;
  return [second, first];
}

// ---- tabs ---------------------------------------------------------------------------------------------------------

function setUpTimelines() {
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const panels = [...document.querySelectorAll(".panel")];
  const lines = panels.map((panel) => new Timeline(panel, data.steps[Number(panel.dataset.step)]));
  const select = (chosen) => {
    tabs.forEach((tab, index) => {
      tab.setAttribute("aria-selected", String(index === chosen));
      tab.tabIndex = index === chosen ? 0 : -1;
      panels[index].hidden = index !== chosen;
    });
    if (lines[chosen]) lines[chosen].draw();
  };
  tabs.forEach((tab, index) => {
    panels[index].setAttribute("role", "tabpanel");
    panels[index].setAttribute("aria-labelledby", tab.id);
    tab.addEventListener("click", () => select(index));
    tab.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 };
      if (!(event.key in moves)) return;
      const next = (moves[event.key] + tabs.length) % tabs.length;
      event.preventDefault();
      select(next);
      tabs[next].focus();
    });
  });
  const drawAll = () => lines.forEach((line) => line.draw());
  document.getElementById("same-scale").addEventListener("change", (event) => {
    lines.forEach((line) => (line.sameScale = event.target.checked));
    drawAll();
  });
  drawAll(); // while all are shown, so that printing finds each of them drawn
  select(Math.max(0, data.steps.findIndex((step) => step.name === "full")));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    const shown = panels.findIndex((panel) => !panel.hidden);
    if (shown >= 0) lines[shown].draw();
  });
}

// ---- tables -------------------------------------------------------------------------------------------------------

const collator = new Intl.Collator("en", { numeric: true });

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const sign = direction === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    if (x.dataset.value !== undefined && y.dataset.value !== undefined) return sign * (x.dataset.value - y.dataset.value);
    return sign * collator.compare(x.textContent, y.textContent);
  };
  body.append(...[...body.rows].sort(compare));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", direction);
    else head.removeAttribute("aria-sort");
  });
}

function setUpSorting(table) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    const first = head.classList.contains("number") ? "descending" : "ascending"; // the largest first
    const other = first === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => {
      sortBy(table, column, head.getAttribute("aria-sort") === first ? other : first);
    });
    head.replaceChildren(button);
  });
}

function setUpSearch(input) {
  const table = document.getElementById(input.dataset.table);
  const count = input.parentElement.querySelector("output");
  const rows = [...table.tBodies[0].rows];
  const names = rows.map((row) => row.cells[0].querySelector(".main").textContent.toLowerCase());
  const filter = () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !names[index].includes(wanted);
      shown += row.hidden ? 0 : 1;
    });
    const all = exact.format(rows.length);
    count.textContent = `${shown === rows.length ? all : `${exact.format(shown)} of ${all}`} ${count.dataset.what}`;
  };
  input.addEventListener("input", filter);
  filter();
}

setUpTimelines();
document.querySelectorAll("table.sortable").forEach(setUpSorting);
document.querySelectorAll("input[type=search]").forEach(setUpSearch);
