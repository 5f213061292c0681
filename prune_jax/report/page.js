"use strict";
// The page's curves and its heat map, drawn from the JSON in #data. Text enters as text nodes only.
const data = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function element(parent, name, attributes = {}, text) {
  const svg = parent.namespaceURI === SVG || name === "svg";
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(+(i * step).toPrecision(12));
  return found;
}

// series: [{label, color, dash, points: [{x, y, sd, retrained, seeds}]}]
function chart(figure, {series, x, y, unit}) {
  const hidden = new Set();
  const holder = element(figure, "div"), readout = element(figure, "div", {class: "readout", "aria-live": "polite"});
  const legend = element(figure, "div", {class: "legend"});
  for (const one of series) {
    const button = element(legend, "button", {type: "button", "aria-pressed": "true"});
    element(button, "i").style.background = one.color;
    button.append(one.label);
    button.onclick = () => {
      hidden.has(one.label) ? hidden.delete(one.label) : hidden.add(one.label);
      button.setAttribute("aria-pressed", String(!hidden.has(one.label)));
      draw();
    };
  }
  const hint = "Point at the curves, or use the arrow keys, for values; the names below switch lines on and off.";

  function draw() {
    holder.replaceChildren();
    readout.textContent = hint;
    const shown = series.filter(s => !hidden.has(s.label));
    const all = shown.flatMap(s => s.points);
    if (!all.length) { readout.textContent = "Nothing to show."; return; }
    const width = Math.max(280, holder.clientWidth), height = Math.round(Math.min(360, Math.max(240, width * 0.62)));
    const left = 52, right = 12, top = 10, bottom = 42;
    let [x0, x1] = [Math.min(...all.map(p => p.x)), Math.max(...all.map(p => p.x))];
    const ys = all.flatMap(p => [p.y - (p.sd || 0), p.y + (p.sd || 0), ...p.seeds]);
    let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    if (x0 === x1) { x0 -= 1; x1 += 1; }
    const margin = (y1 - y0) * 0.06 || Math.abs(y1) * 0.05 || 0.05;
    y0 -= margin; y1 += margin;
    const px = v => left + (v - x0) / (x1 - x0) * (width - left - right);
    const py = v => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
    const svg = element(holder, "svg", {viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
      "aria-label": `${y} against ${x}; the arrow keys read the values`});
    for (const value of ticks(y0, y1, 5)) {
      element(svg, "line", {class: "axis", x1: left, x2: width - right, y1: py(value), y2: py(value)});
      element(svg, "text", {x: left - 6, y: py(value) + 4, "text-anchor": "end"}, String(value));
    }
    const whole = x === "epoch";
    for (const value of ticks(x0, x1, unit === "%" || whole ? (width < 420 ? 5 : 8) : Math.floor(width / 95)).filter(v => !whole || Number.isInteger(v))) {
      element(svg, "text", {x: px(value), y: height - bottom + 18, "text-anchor": "middle"}, value + unit);
    }
    element(svg, "text", {x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle"}, x);
    for (const one of shown) {
      if (one.points.some(p => p.sd)) {
        const edge = (points, sign) => points.map(p => `${px(p.x)},${py(p.y + sign * (p.sd || 0))}`);
        const outline = [...edge(one.points, 1), ...edge([...one.points].reverse(), -1)].join(" ");
        element(svg, "polygon", {points: outline, fill: one.color, opacity: 0.15});
      }
      const line = one.apart ? "" : one.points.map(p => `${px(p.x)},${py(p.y)}`).join(" ");
      element(svg, "polyline", {points: line, fill: "none", stroke: one.color, "stroke-width": 2, "stroke-dasharray": one.dash});
      if (one.points.length === 1 && !one.apart) {  // the dense level, to hold the others against
        const level = py(one.points[0].y);
        element(svg, "line", {x1: left, x2: width - right, y1: level, y2: level, stroke: one.color, "stroke-dasharray": "2 4"});
      }
      for (const p of one.points) {
        for (const seed of p.seeds) element(svg, "circle", {cx: px(p.x), cy: py(seed), r: 2, fill: one.color, opacity: 0.55});
        const open = p.retrained === false ? "var(--card)" : one.color;
        element(svg, "circle", {cx: px(p.x), cy: py(p.y), r: 3.5, fill: open, stroke: one.color, "stroke-width": 1.5});
      }
    }
    const cursor = element(svg, "line", {class: "cursor", y1: top, y2: height - bottom, visibility: "hidden"});
    const places = [...new Set(all.map(p => p.x))].sort((a, b) => a - b);
    let place = -1;
    const show = near => {
      place = places.indexOf(near);
      for (const [key, value] of [["x1", px(near)], ["x2", px(near)], ["visibility", "visible"]]) cursor.setAttribute(key, value);
      readout.replaceChildren();
      element(readout, "span", {}, near + unit);
      for (const one of shown) {
        const p = one.points.find(p => p.x === near);
        if (!p) continue;
        const sd = p.sd === null ? "" : ` ± ${p.sd.toFixed(4)}`;
        const span = element(readout, "span", {}, `${one.label} ${p.y.toFixed(4)}${sd}${p.retrained === false ? " †" : ""}`);
        span.style.borderBottom = `2px solid ${one.color}`;
      }
    };
    svg.onpointermove = event => {
      const at = (event.clientX - svg.getBoundingClientRect().left) / svg.getBoundingClientRect().width * width;
      show(all.reduce((a, b) => Math.abs(px(b.x) - at) < Math.abs(px(a.x) - at) ? b : a).x);
    };
    svg.onkeydown = event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      show(places[Math.min(places.length - 1, Math.max(0, place < 0 ? (step < 0 ? places.length - 1 : 0) : place + step))]);
    };
    svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); readout.textContent = hint; };
  }
  let width = 0;
  new ResizeObserver(() => { if (holder.clientWidth !== width) { width = holder.clientWidth; requestAnimationFrame(draw); } }).observe(holder);
}

function heatMap(figure, runs) {
  const select = element(figure, "select", {"aria-label": "run"});
  runs.forEach((run, i) => element(select, "option", {value: i}, run.name));
  const holder = element(figure, "div"), readout = element(figure, "div", {class: "readout", "aria-live": "polite"});

  function draw() {
    const run = runs[select.value];
    holder.replaceChildren();
    readout.textContent = "Point at a cell, or use the arrow keys: the closed share of a layer after an epoch. Faint is open, strong is closed.";
    const width = Math.max(280, holder.clientWidth), left = Math.min(190, width * 0.42), row = 18, top = 4;
    const cell = (width - left - 4) / run.epochs.length, height = top + row * run.layers.length + 36;
    const svg = element(holder, "svg", {viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0,
      "aria-label": "sparsity by layer and epoch; the arrow keys read the values"});
    const show = (i, j) => { readout.textContent = `${run.layers[i]}, epoch ${run.epochs[j]}: ${(100 * run.values[i][j]).toFixed(2)}% closed`; };
    let at = [0, -1];
    svg.onkeydown = event => {
      const [down, right] = {ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1]}[event.key] || [];
      if (down === undefined) return;
      event.preventDefault();
      at = [Math.min(run.layers.length - 1, Math.max(0, at[0] + down)), Math.min(run.epochs.length - 1, Math.max(0, at[1] + right))];
      show(...at);
    };
    const limit = Math.floor((left - 8) / 6.4);
    run.layers.forEach((layer, i) => {
      const short = layer.length > limit ? "…" + layer.slice(1 - limit) : layer;
      element(svg, "text", {x: left - 6, y: top + row * i + 13, "text-anchor": "end"}, short);
      run.values[i].forEach((value, j) => {
        const box = element(svg, "rect", {x: left + cell * j, y: top + row * i, width: Math.max(1, cell - 1), height: row - 1,
          fill: `rgba(var(--hot), ${0.06 + 0.94 * value})`});
        box.onpointerenter = () => show(i, j);
      });
    });
    const every = Math.ceil(26 / cell);
    run.epochs.forEach((epoch, j) => {
      if (j % every === 0) element(svg, "text", {x: left + cell * (j + 0.5), y: height - 20, "text-anchor": "middle"}, String(epoch));
    });
    element(svg, "text", {x: (left + width) / 2, y: height - 4, "text-anchor": "middle"}, "epoch");
  }
  select.onchange = draw;
  let width = 0;
  new ResizeObserver(() => { if (holder.clientWidth !== width) { width = holder.clientWidth; requestAnimationFrame(draw); } }).observe(holder);
}

for (const one of data.charts) chart(document.getElementById(one.id), one);
if (data.layers.length) heatMap(document.getElementById("layers"), data.layers);

// A table that is cut off says that it scrolls.
for (const box of document.querySelectorAll(".scroll")) {
  const hint = document.createElement("p");
  hint.className = "note";
  hint.textContent = "The table goes on: scroll sideways →";
  box.after(hint);
  new ResizeObserver(() => { hint.hidden = box.scrollWidth <= box.clientWidth + 1; }).observe(box);
}
