"use strict";
// Drawing: shows one state of the graph at a time: layers folded or open, laid out in rows from top to bottom.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 176, HEIGHT = 38, ROW = 26, COLUMN = 20, PAD = 16, HEADER = 22, STUB = 112, LANE = 26, MANY = 8;
const [OP, ATTRIBUTES, READS, GIVES, TYPES, FILE, LINE, SCOPE, STILL] = [0, 1, 2, 3, 4, 5, 6, 7, 8];

const states = data.states.map((s) => {
  const nodes = s.order.flatMap(([first, count]) => Array.from({ length: count }, (_, i) => first + i));
  const maker = new Map();
  for (const n of nodes) for (const v of data.nodes[n][GIVES]) maker.set(v, n);
  return { nodes, maker, outputs: s.outputs, groups: new Map(s.groups || []) };
});
const view = { pass: -1, open: new Set(), chosen: null, x: 0, y: 0, zoom: 1, hits: new Set(), boxes: [], place: new Map() };

const element = (name, attributes, ...children) => {
  const made = document.createElementNS(SVG, name);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  made.append(...children);
  return made;
};
const html = (name, attributes, ...children) => {
  const made = document.createElement(name);
  for (const [k, v] of Object.entries(attributes)) {
    if (k.startsWith("on")) made.addEventListener(k.slice(2), v);
    else made.setAttribute(k, v);
  }
  made.append(...children);
  return made;
};
const short = (text, most) => (text.length <= most ? text : `${text.slice(0, most / 2 - 1)}…${text.slice(-most / 2)}`);
const stateOf = (pass) => (pass < 0 ? 0 : data.passes[pass].state);
const current = () => states[stateOf(view.pass)];
const identity = (n) => data.nodes[n][GIVES][0];
const opOf = (n) => data.ops[data.nodes[n][OP]];
const typeOf = (n) => data.nodes[n][TYPES].map((t) => data.types[t]).join(", ");
const layerOf = (n) => data.layers[data.layer_of[data.nodes[n][SCOPE]]];
const placeOf = (n) => {
  const [file, line, scope] = [data.files[data.nodes[n][FILE]], data.nodes[n][LINE], data.scopes[data.nodes[n][SCOPE]]];
  return `${file ? `${file}:${line}` : "made by a pass"}${scope ? ` · ${scope}` : ""}`;
};

// -- what is drawn ---------------------------------------------------------------------------------------------

function boxesOf(state) {
  // Nodes that compute with more than weights; those of a folded layer are one box. Inputs stand at the top.
  const boxes = new Map(), boxOf = new Map();
  const shown = state.nodes.filter((n) => !data.nodes[n][STILL]);
  const loops = interleaved(state, shown);
  const home = homes(state, shown);
  for (const n of shown) {
    const layer = layerOf(n);
    const framed = layer && !loops.has(layer);
    const folded = framed && !view.open.has(layer);
    const key = folded ? `layer ${layer}` : `node ${identity(n)}`;
    if (!boxes.has(key)) boxes.set(key, { key, nodes: [], layer: framed ? layer : "", folded, reads: new Map() });
    boxes.get(key).nodes.push(n);
    boxOf.set(n, boxes.get(key));
  }
  for (const n of shown) {
    const box = boxOf.get(n);
    for (const v of data.nodes[n][READS]) {
      if (v === null) continue;
      const made = state.maker.get(v);
      if (made !== undefined && boxOf.has(made)) {
        if (boxOf.get(made) !== box) box.reads.set(boxOf.get(made), v);
      } else if (made === undefined && data.leaves[v][0] === "input") {
        const key = `input ${v}`, layer = loops.has(home.get(v)) ? "" : home.get(v);
        if (layer && !view.open.has(layer)) continue;
        if (!boxes.has(key)) boxes.set(key, { key, nodes: [], leaf: v, layer, reads: new Map() });
        box.reads.set(boxes.get(key), v);
      }
    }
  }
  for (const [name, v] of Object.entries(state.outputs)) {
    const made = state.maker.get(v);
    if (made === undefined || !boxOf.has(made)) continue;
    if (boxOf.get(made).folded) continue;
    const box = { key: `output ${name}`, nodes: [], output: name, layer: "", reads: new Map() };
    box.layer = boxOf.get(made).layer;
    box.reads.set(boxOf.get(made), v);
    boxes.set(box.key, box);
  }
  const all = [...boxes.values()];
  for (const box of all) box.readers = 0;
  for (const box of all) for (const source of box.reads.keys()) source.readers++;
  return [...all.filter((b) => b.leaf !== undefined), ...all.filter((b) => b.leaf === undefined)];
}

function homes(state, shown) {
  // The layer of each input that only one layer reads, such as a part of the cache.
  const home = new Map();
  for (const n of shown) for (const v of data.nodes[n][READS]) {
    if (v === null || !data.leaves[v]) continue;
    home.set(v, home.has(v) && home.get(v) !== layerOf(n) ? "" : layerOf(n));
  }
  return home;
}

function interleaved(state, shown) {
  // Layers that cannot be one box, since something between their nodes stands outside of them.
  const bad = new Set(), behind = new Map();
  for (const n of shown) {
    const mine = layerOf(n), reach = new Set();
    for (const v of data.nodes[n][READS]) {
      const made = v === null ? undefined : state.maker.get(v);
      if (made === undefined || !behind.has(made)) continue;
      const from = layerOf(made);
      if (from && from !== mine) reach.add(from);
      for (const l of behind.get(made)) {
        if (l === mine && from !== mine) bad.add(l);
        if (l !== mine || from !== mine) reach.add(l);
      }
    }
    behind.set(n, reach);
  }
  return bad;
}

// -- layout ------------------------------------------------------------------------------------------------------

function rowsOf(items, reads) {
  // Rows by the longest way from the top; each item then moves down to right above what reads it.
  const row = new Map(), readers = new Map(items.map((i) => [i, []])), inside = new Set(items);
  const rowOf = (item) => {
    if (!row.has(item)) {
      row.set(item, 0);
      const before = reads(item).filter((r) => inside.has(r));
      for (const r of before) readers.get(r).push(item);
      row.set(item, before.length ? Math.max(...before.map(rowOf)) + 1 : 0);
    }
    return row.get(item);
  };
  items.forEach(rowOf);
  for (const item of [...items].sort((a, b) => row.get(b) - row.get(a))) {
    const after = readers.get(item).map((r) => row.get(r));
    if (after.length) row.set(item, Math.max(row.get(item), Math.min(...after) - 1));
  }
  const rows = [];
  for (const item of items) (rows[row.get(item)] ||= []).push(item);
  return rows.filter(Boolean);
}

function arrange(items, reads) {
  // Items reach `before` to the left of their x and `after` to the right. Sets x (of the trunk) and y (top) of items; gives the size of the whole.
  const at = new Map();
  let y = 0, left = 0, right = 0;
  for (const row of rowsOf(items, reads)) {
    const wish = row.map((item) => {
      const before = reads(item).filter((r) => at.has(r)).map((r) => at.get(r));
      return [before.length ? before.reduce((a, b) => a + b) / before.length : 0, item];
    });
    wish.sort((a, b) => a[0] - b[0]);
    let x = 0, off = 0;
    for (const [wanted, item] of wish) {
      item.x = x + item.before;
      off += wanted - item.x;
      x += item.before + item.after + COLUMN;
    }
    off /= wish.length;
    for (const [, item] of wish) {
      item.x += off;
      item.y = y;
      at.set(item, item.x);
      left = Math.min(left, item.x - item.before);
      right = Math.max(right, item.x + item.after);
    }
    y += Math.max(...row.map((i) => i.height)) + ROW;
  }
  return { left, right, height: Math.max(0, y - ROW) };
}

function layOut(boxes) {
  const frames = new Map(), itemOf = new Map(), items = [];
  for (const box of boxes) {
    box.height = HEIGHT;
    box.after = WIDTH / 2;
    box.before = WIDTH / 2 + ([...box.reads.keys()].some((r) => apart(r, box)) ? STUB : 0);
    if (box.layer && !box.folded) {
      if (!frames.has(box.layer)) {
        frames.set(box.layer, { layer: box.layer, boxes: [] });
        items.push(frames.get(box.layer));
      }
      frames.get(box.layer).boxes.push(box);
      itemOf.set(box, frames.get(box.layer));
    } else {
      items.push(box);
      itemOf.set(box, box);
    }
  }
  for (const frame of frames.values()) {
    frame.size = arrange(frame.boxes, (b) => [...b.reads.keys()]);
    const trunk = frame.boxes.filter((b) => b.output === undefined).reduce((a, b) => (b.y >= a.y ? b : a));
    frame.trunk = trunk.x;
    frame.before = trunk.x - frame.size.left + PAD;
    frame.after = frame.size.right - trunk.x + PAD + LANE;
    frame.width = frame.before + frame.after;
    frame.height = frame.size.height + 2 * PAD + HEADER;
  }
  const outer = new Map(items.map((i) => [i, new Set()]));
  for (const box of boxes) for (const r of box.reads.keys()) {
    if (itemOf.get(r) !== itemOf.get(box) && !apart(r, box)) outer.get(itemOf.get(box)).add(itemOf.get(r));
  }
  const size = arrange(items, (i) => [...outer.get(i)]);
  for (const frame of frames.values()) {
    const shift = frame.x - frame.trunk;
    for (const box of frame.boxes) {
      box.x += shift;
      box.y += frame.y + PAD + HEADER;
    }
  }
  return { frames: [...frames.values()], size };
}

// A value that many read, such as a mask, is named at each reader instead of drawn as so many lines.
const apart = (source, box) => source.readers > MANY && !(source.folded && box.folded);

// -- drawing -----------------------------------------------------------------------------------------------------

function draw() {
  const state = current(), world = $("world");
  view.boxes = boxesOf(state);
  const { frames, size } = layOut(view.boxes);
  view.size = size;
  view.place = new Map();
  const marks = marksOf(view.pass);
  const under = [], wires = [], over = [];
  for (const frame of frames) {
    const x = frame.x - frame.before;
    under.push(element("rect", { class: "frame", x, y: frame.y, width: frame.width, height: frame.height, rx: 8 }));
    const title = element("text", { class: "frametitle", x: x + 10, y: frame.y + 16, tabindex: 0, role: "button",
      "aria-label": `Fold ${frame.layer}` }, `▾ ${short(frame.layer, Math.floor(frame.width / 7.5))}`);
    pressed(title, () => toggle(frame.layer));
    over.push(title);
  }
  for (const box of view.boxes) {
    for (const n of box.nodes) view.place.set(identity(n), box);
    let stubs = 0;
    for (const [source, value] of box.reads) {
      if (apart(source, box)) {
        const text = element("text", { class: "stub", x: box.x - WIDTH / 2 - 4, y: box.y + 14 + 11 * stubs++ }, `${short(stubOf(source), 18)} ▸`);
        text.addEventListener("click", () => choose(source));
        over.push(text);
        continue;
      }
      wires.push(wire(source, box, value));
    }
    over.push(nodeOf(box, marks));
  }
  world.replaceChildren(...under, ...wires, ...over);
  legend(marks);
  near();
}

function wire(source, box) {
  const [x0, y0, x1, y1] = [source.x, source.y + HEIGHT, box.x, box.y];
  const between = y1 - y0 > HEIGHT + ROW ? view.boxes.filter((b) => b.y > y0 && b.y + HEIGHT < y1) : [];
  const low = Math.min(x0, x1) - WIDTH / 2, high = Math.max(x0, x1) + WIDTH / 2;
  const blocking = between.filter((b) => b.x + WIDTH / 2 > low && b.x - WIDTH / 2 < high);
  let d = `M${x0} ${y0}C${x0} ${y0 + 16} ${x1} ${y1 - 16} ${x1} ${y1}`;
  if (blocking.length) {
    let side = Math.max(x0, x1) + WIDTH / 2 + 14;
    for (const b of between.sort((a, b) => a.x - b.x)) {
      if (b.x + WIDTH / 2 + 8 > side && b.x - WIDTH / 2 - 8 < side) side = b.x + WIDTH / 2 + 14;
    }
    d = `M${x0} ${y0}C${x0} ${y0 + 14} ${side} ${y0 + 6} ${side} ${y0 + ROW}L${side} ${y1 - ROW}C${side} ${y1 - 6} ${x1} ${y1 - 14} ${x1} ${y1}`;
  }
  const made = element("path", { class: "wire", d });
  made.ends = [source, box];
  return made;
}

const nameOf = (box) => box.leaf !== undefined ? data.leaves[box.leaf][1]
  : box.output !== undefined ? box.output : box.folded ? box.layer : opOf(box.nodes[0]);
function stubOf(source) {
  // What a value that many read is made of, if that is one input; else the op that makes it.
  if (source.nodes.length !== 1) return nameOf(source);
  const state = current();
  for (let n = source.nodes[0]; ;) {
    const read = data.nodes[n][READS].filter((v) => v !== null && !data.nodes[state.maker.get(v)]?.[STILL]);
    if (read.length !== 1 || data.roles[opOf(n)]) return nameOf(source);
    if (data.leaves[read[0]]) return data.leaves[read[0]][0] === "input" ? data.leaves[read[0]][1] : nameOf(source);
    n = state.maker.get(read[0]);
  }
}

const underOf = (box) => box.leaf !== undefined ? data.leaves[box.leaf][2]
  : box.output !== undefined ? "output" : box.folded ? `${box.nodes.length} nodes` : typeOf(box.nodes[0]);

function nodeOf(box, marks) {
  const classes = ["node"];
  if (box.leaf !== undefined || box.output !== undefined) classes.push("leaf");
  else if (box.folded) classes.push("layer");
  else classes.push(data.roles[opOf(box.nodes[0])] || "plain");
  if (box.nodes.length === 1 && !box.folded && marks.fused.has(identity(box.nodes[0]))) classes.push("fused");
  if (box.nodes.some((n) => marks.made.has(n))) classes.push("made");
  else if (box.nodes.some((n) => marks.going.has(n))) classes.push("going");
  if (box.nodes.some((n) => view.hits.has(n))) classes.push("hit");
  if (view.chosen === box.key) classes.push("chosen");
  const x = box.x - WIDTH / 2, name = nameOf(box), under = underOf(box);
  const made = element("g", { class: classes.join(" "), tabindex: 0, role: "button", "aria-label": `${name}, ${under}` },
    element("rect", { x, y: box.y, width: WIDTH, height: HEIGHT, rx: 6 }),
    element("text", { x: box.x, y: box.y + 16 }, `${box.folded ? "▸ " : ""}${short(name, 24)}`),
    element("text", { x: box.x, y: box.y + 30, class: "type" }, short(under, 30)));
  box.element = made;
  pressed(made, () => (box.folded ? toggle(box.layer) : choose(box)));
  made.addEventListener("focus", () => {
    view.focus = box;
    if (made.matches(":focus-visible")) intoView(box);
  });
  made.addEventListener("pointerenter", (e) => tip(e, box));
  made.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  return made;
}

function pressed(target, action) {
  target.addEventListener("click", () => { if (!view.dragged) action(); });
  target.addEventListener("keydown", (e) => {
    if (e.key === "Enter" || e.key === " ") { e.preventDefault(); action(); }
  });
}

function marksOf(pass) {
  // made: nodes that this pass made. going: nodes that the next change takes into others. fused: those that took others.
  const now = stateOf(pass), made = new Set(), going = new Map(), fused = new Set();
  for (const s of states.slice(0, now + 1)) for (const fresh of s.groups.values()) fused.add(identity(fresh));
  if (pass >= 0 && now > stateOf(pass - 1)) {
    const before = new Set(states[now - 1].nodes.map(identity));
    for (const n of states[now].nodes) if (!before.has(identity(n))) made.add(n);
  }
  if (now + 1 < states.length) for (const [old, fresh] of states[now + 1].groups) going.set(old, fresh);
  return { made, going, fused };
}

function legend(marks) {
  const entry = (colour, text) => html("li", {}, Object.assign(html("i", {}), { style: `border-color:var(--${colour})` }), text);
  const entries = [];
  const next = data.passes.find((p) => p.state === stateOf(view.pass) + 1);
  if (marks.made.size) entries.push(entry("new", `made by ${data.passes[view.pass].name}: ${marks.made.size}`));
  const fused = current().nodes.filter((n) => marks.fused.has(identity(n))).length;
  if (fused) entries.push(entry("fused", `fused so far: ${fused}`));
  if (marks.going.size && next) entries.push(entry("going", `taken into others by ${next.name}: ${marks.going.size}`));
  if (view.hits.size) entries.push(entry("hit", `found: ${view.hits.size}`));
  $("legend").replaceChildren(...entries);
}

function near() {
  const box = view.boxes.find((b) => b.key === view.chosen);
  for (const path of $("world").querySelectorAll(".wire")) path.classList.toggle("near", !!box && path.ends.includes(box));
  const group = box && box.nodes.length === 1 ? marksOf(view.pass).going.get(box.nodes[0]) : undefined;
  const marks = marksOf(view.pass).going;
  for (const b of view.boxes) {
    b.element.classList.toggle("chosen", b === box);
    b.element.classList.toggle("group", group !== undefined && b.nodes.some((n) => marks.get(n) === group));
  }
}
