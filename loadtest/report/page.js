"use strict";
// Draws the plots at the width of the window, from the JSON in the page. Nothing is fetched.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const data = JSON.parse(document.getElementById("data").textContent);
  const colour = (n) => `var(--c${n % 7})`;
  const el = (name, attributes = {}, text) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const html = (name, className, text) => {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (value, percent) => {
    if (percent) return `${(value * 100).toFixed(value > 0.98 && value < 1 ? 1 : 0)} %`;
    const size = Math.abs(value);
    const digits = size >= 100 || Number.isInteger(value) ? 0 : size >= 1 ? 1 : 2;
    return value.toLocaleString("en-GB", { maximumFractionDigits: digits });
  };
  // As many digits as neighbouring ticks need to differ.
  const tickLabels = (values, percent) => {
    const step = values.length > 1 ? Math.abs(values[1] - values[0]) : 0;
    let digits = 0;
    while (step && digits < 6 && Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6) digits++;
    return values.map((t) => percent || !step ? number(t, percent) : t.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  };
  const ticks = (low, high, wanted) => {
    const raw = (high - low) / Math.max(1, wanted) || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw - 1e-12) || raw;
    const out = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) out.push(+at.toPrecision(10));
    return out;
  };
  const logTicks = (low, high) => {
    const out = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const m of [1, 2, 5]) if (m * 10 ** power >= low * 0.999 && m * 10 ** power <= high * 1.001) out.push(m * 10 ** power);
    return out;
  };
  const timed = []; // charts on the run's time axis share one crosshair
  const halfStep = (xs) => xs.length > 1 ? (xs[1] - xs[0]) / 2 : 0.5;
  // ... and one range, so that a moment has the same position in all of them.
  const lastMoment = Math.max(0, ...data.time.flatMap((chart) => chart.lines.map((line) => {
    const xs = line.x || chart.x;
    return xs.length ? xs[xs.length - 1] + (line.step ? halfStep(xs) : 0) : 0;
  })));

  function stacked(lines) {
    let below = null;
    return lines.map((line) => {
      if (!line.stack) return { ...line, base: null };
      const base = below || line.y.map(() => 0);
      const top = line.y.map((value, i) => (value === null ? base[i] : value + base[i]));
      below = top;
      return { ...line, own: line.y, y: top, base };
    });
  }

  function draw(holder, chart) {
    const width = Math.max(280, holder.clientWidth), height = 190;
    const lines = stacked(chart.lines);
    const xs = lines.flatMap((line) => line.x || chart.x);
    const ys = lines.flatMap((line) => line.y).filter((v) => v !== null);
    holder.replaceChildren();
    if (!ys.length) { holder.append(html("p", "hint", "no data")); return null; }
    let x0 = chart.timed ? 0 : Math.min(...xs), x1 = chart.timed ? lastMoment : Math.max(...xs);
    if (chart.log_x) { x0 = Math.max(x0, 1e-3); }
    if (x1 <= x0) { x0 = x0 * 0.9; x1 = x1 * 1.1 || 1; }
    const y1 = chart.percent ? Math.max(1, ...ys) : Math.max(...ys) * 1.06 || 1;
    const yTicks = ticks(0, y1, 4);
    const yLabels = tickLabels(yTicks, chart.percent), xTicks = chart.log_x ? logTicks(x0, x1) : ticks(x0, x1, Math.max(2, width / 90));
    const xLabels = chart.log_x ? xTicks.map((t) => number(t)) : tickLabels(xTicks);
    const left = 14 + Math.max(...yLabels.map((label) => label.length)) * 7.2, right = 10, top = 8, bottom = 36;
    const fx = (v) => left + (chart.log_x ? Math.log(Math.max(v, x0) / x0) / Math.log(x1 / x0) : (v - x0) / (x1 - x0)) * (width - left - right);
    const fy = (v) => top + (1 - v / y1) * (height - top - bottom);
    const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${chart.title}, ${chart.y_label} over ${chart.x_label}` });
    if (chart.shade) {
      const [from, to] = chart.shade.map((v) => Math.min(Math.max(v, x0), x1));
      svg.append(el("rect", { x: fx(from), y: top, width: Math.max(0, fx(to) - fx(from)), height: height - top - bottom, fill: "var(--shade)" }));
    }
    for (const [i, t] of yTicks.entries()) {
      svg.append(el("line", { x1: left, x2: width - right, y1: fy(t), y2: fy(t), class: "grid" }));
      svg.append(el("text", { x: left - 6, y: fy(t) + 4, "text-anchor": "end" }, yLabels[i]));
    }
    let lastLabel = -1e9;
    for (const [i, t] of xTicks.entries()) {
      const label = xLabels[i], at = fx(t), wide = label.length * 7;
      if (at - wide / 2 < lastLabel + 10 || at + wide / 2 > width) continue;
      lastLabel = at + wide / 2;
      svg.append(el("line", { x1: at, x2: at, y1: height - bottom, y2: height - bottom + 4, class: "axis" }));
      svg.append(el("text", { x: at, y: height - bottom + 16, "text-anchor": "middle" }, label));
    }
    svg.append(el("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }));
    svg.append(el("text", { x: width - right, y: height - 3, "text-anchor": "end" }, chart.x_label));
    for (const mark of chart.marks) {
      const node = el("line", { x1: fx(mark.at), x2: fx(mark.at), y1: top, y2: height - bottom, class: `mark ${mark.kind}` });
      node.append(el("title", {}, `${number(mark.at)} s: ${mark.what}`));
      svg.append(node);
    }
    lines.forEach((line) => path(svg, line, line.x || chart.x, fx, fy));
    const cross = el("line", { y1: top, y2: height - bottom, class: "cross", visibility: "hidden" });
    svg.append(cross);
    holder.append(svg);
    return { svg, cross, fx, x0, x1, left, right, width, lines };
  }

  function path(svg, line, xs, fx, fy) {
    const points = [], base = [];
    let run = [];
    const runs = [];
    // A step reaches half-way to its neighbours, because samples of the fleet are not evenly spaced.
    const half = halfStep(xs), last = xs.length - 1;
    const from = (i) => i ? (xs[i - 1] + xs[i]) / 2 : Math.max(0, xs[0] - half);
    const to = (i) => i < last ? (xs[i] + xs[i + 1]) / 2 : xs[i] + half;
    xs.forEach((x, i) => {
      const y = line.y[i];
      // A latency has no value where no request ended: the line continues to the next value.
      if (y === null) { if (run.length && (line.fill || line.step)) { runs.push(run); run = []; } return; }
      if (line.step) { run.push([fx(from(i)), fy(y), i], [fx(to(i)), fy(y), i]); } else run.push([fx(x), fy(y), i]);
    });
    if (run.length) runs.push(run);
    for (const part of runs) {
      const d = part.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`).join("");
      if (line.fill || line.stack) {
        const back = [...part].reverse().map(([x, , i]) => `L${x.toFixed(1)},${fy(line.base ? line.base[i] : 0).toFixed(1)}`).join("");
        svg.append(el("path", { d: `${d}${back}Z`, fill: colour(line.colour), "fill-opacity": line.stack ? 0.45 : 0.16, stroke: "none" }));
      }
      // A single value would be an invisible line, so it gets a dot.
      if (part.length === 1) svg.append(el("circle", { cx: part[0][0], cy: part[0][1], r: 2.5, fill: colour(line.colour) }));
      svg.append(el("path", { d, fill: "none", stroke: colour(line.colour), "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-dasharray": line.dash ? "6 4" : "none" }));
    }
  }

  function place(chart) {
    const box = html("div", "chart"), legend = html("div", "legend"), holder = html("div", "plot");
    box.append(html("h3", "", `${chart.title}, ${chart.y_label}`));
    if (chart.hint) box.append(html("p", "hint", chart.hint));
    box.append(legend, holder);
    const state = { chart, drawn: null };
    const write = (at) => {
      legend.replaceChildren();
      chart.lines.forEach((line) => {
        const item = html("span"), dot = html("i");
        dot.style.background = colour(line.colour);
        item.append(dot, line.name);
        if (at !== null) {
          const xs = line.x || chart.x;
          let value = null;
          if (chart.timed) {
            let best = 0;
            xs.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(xs[best] - at)) best = i; });
            value = line.y[best];
          } else {
            const i = xs.findIndex((x) => x >= at);
            value = i < 0 ? 1 : line.y[i];
          }
          item.append(" ", html("b", "", value === null || value === undefined ? "–" : number(value, chart.percent)));
        }
        legend.append(item);
      });
      // The legend explains dashed lines, because a phone cannot hover over them.
      const near = at === null ? [] : chart.marks.filter((mark) => Math.abs(mark.at - at) < (state.drawn.x1 - state.drawn.x0) / 60);
      for (const [kind, word] of [["scale", "scaling"], ["death", "replica lost"], ["event", "command"]]) {
        if (!chart.marks.some((mark) => mark.kind === kind)) continue;
        const item = html("span"), dash = html("i", `dash ${kind}`);
        item.append(dash, word);
        legend.append(item);
      }
      near.forEach((mark) => legend.append(html("b", "", mark.what)));
      if (at !== null) legend.append(html("span", "", chart.timed ? `at ${number(at)} s` : `within ${number(at)} ms`));
    };
    state.show = (at) => {
      if (!state.drawn) return;
      const { cross, fx, x0, x1 } = state.drawn;
      const inside = at !== null && at >= x0 && at <= x1;
      cross.setAttribute("visibility", inside ? "visible" : "hidden");
      if (inside) { cross.setAttribute("x1", fx(at)); cross.setAttribute("x2", fx(at)); }
      write(inside ? at : null);
    };
    state.redraw = () => {
      state.drawn = draw(holder, chart);
      write(null);
      if (!state.drawn) return;
      const { svg, left, right, width, x0, x1 } = state.drawn;
      const move = (event) => {
        const rect = svg.getBoundingClientRect();
        const share = ((event.clientX - rect.left) / rect.width * width - left) / (width - left - right);
        const at = share < 0 || share > 1 ? null : chart.log_x ? x0 * (x1 / x0) ** share : x0 + share * (x1 - x0);
        (chart.timed ? timed : [state]).forEach((other) => other.show(at));
      };
      svg.addEventListener("pointermove", move);
      svg.addEventListener("pointerdown", move);
      svg.addEventListener("pointerleave", () => (chart.timed ? timed : [state]).forEach((other) => other.show(null)));
    };
    if (chart.timed) timed.push(state);
    return { box, redraw: state.redraw };
  }

  function swim(holder) {
    const { rows, all, end, lanes } = data.lanes;
    holder.replaceChildren();
    if (!rows.length) { holder.append(html("p", "hint", "no request was started")); return; }
    const width = Math.max(280, holder.clientWidth), left = 8, right = 10, bottom = 34;
    const bar = Math.max(2, Math.min(14, 330 / lanes)), gap = bar > 4 ? 2 : 0.6;
    const height = lanes * (bar + gap) + bottom + 6;
    const fx = (v) => left + v / end * (width - left - right);
    const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "requests over time" });
    const times = ticks(0, end, Math.max(2, width / 90)), labels = tickLabels(times);
    for (const [i, t] of times.entries()) {
      svg.append(el("line", { x1: fx(t), x2: fx(t), y1: 0, y2: height - bottom, class: "grid" }));
      const anchor = t === 0 ? "start" : fx(t) > width - 20 ? "end" : "middle";
      svg.append(el("text", { x: fx(t), y: height - bottom + 15, "text-anchor": anchor }, labels[i]));
    }
    svg.append(el("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "seconds since the start"));
    rows.forEach(([start, first, stop, bad, index, outcome, tokens, lane]) => {
      const y = 2 + lane * (bar + gap), c = bad === 1 ? "var(--c3)" : bad === 2 ? "var(--c6)" : "var(--c0)";
      const group = el("g");
      const waitEnd = first === null ? stop : first;
      group.append(el("rect", { x: fx(start), y, width: Math.max(bad === 1 ? 2.5 : 0.8, fx(waitEnd) - fx(start)), height: bar, fill: c, "fill-opacity": first === null && bad === 1 ? 1 : 0.32 }));
      if (first !== null) group.append(el("rect", { x: fx(first), y, width: Math.max(0.8, fx(stop) - fx(first) - 0.7), height: bar, fill: c }));
      const detail = first === null ? "no token" : `first token after ${number((first - start) * 1000)} ms, ${tokens} tokens`;
      group.append(el("title", {}, `request ${index}: ${outcome}, ${detail}, ${number(stop - start)} s`));
      svg.append(group);
    });
    holder.append(svg);
    if (all > rows.length) holder.append(html("p", "hint", `${rows.length} of ${all} requests are shown`));
  }

  const redraws = [];
  for (const [id, charts] of [["time", data.time], ["spread", data.spread]]) {
    const holder = document.getElementById(id);
    if (!holder) continue; // a single request has no distribution
    if (!charts.length) holder.append(html("p", "hint", "no request succeeded, so there is nothing to plot"));
    charts.forEach((chart) => { const { box, redraw } = place(chart); holder.append(box); redraws.push(redraw); });
  }
  redraws.push(() => swim(document.getElementById("lanes")));
  let drawnAt = 0;
  const all = () => { if (drawnAt === window.innerWidth) return; drawnAt = window.innerWidth; redraws.forEach((redraw) => redraw()); };
  window.addEventListener("resize", all);
  all();
})();
