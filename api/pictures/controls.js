// Controls: passes, details of a node, search, near misses, zoom and pan, keys.

function choose(box) {
  view.chosen = box.key;
  near();
  details(box);
}

function toggle(layer) {
  view.open.has(layer) ? view.open.delete(layer) : view.open.add(layer);
  const box = view.boxes.find((b) => b.layer === layer);
  const before = box && [box.x, box.y];
  draw();
  const after = view.boxes.find((b) => b.layer === layer);
  if (before && after) {
    view.x += (before[0] - after.x) * view.zoom;
    view.y += (before[1] - after.y) * view.zoom;
    after.element.focus({ preventScroll: true });
  }
  move();
}

function labelOf(value, state) {
  const leaf = data.leaves[value];
  if (leaf) return `${leaf[0] === "param" ? "@" : "%"}${leaf[1]}`;
  const made = state.maker.get(value);
  if (made === undefined) return "?";
  if (!data.nodes[made][STILL]) return `%${value}`;
  const parts = data.nodes[made][READS].filter((v) => v !== null).map((v) => labelOf(v, state));
  const said = [...parts, data.nodes[made][ATTRIBUTES]].filter(Boolean).join(", ");
  return `${opOf(made)}(${short(said, 200)})`;
}

function link(value, state) {
  const made = state.maker.get(value);
  const type = made !== undefined ? data.types[data.nodes[made][TYPES][data.nodes[made][GIVES].indexOf(value)]] : data.leaves[value]?.[2];
  const text = `${labelOf(value, state)}: ${type}`;
  const shown = made !== undefined && view.place.has(identity(made));
  const still = made !== undefined && data.nodes[made][STILL];
  if (!shown || still) return html("li", {}, html("code", {}, text));
  return html("li", {}, html("button", { type: "button", onclick: () => reveal(made) }, html("code", {}, `${opOf(made)} ${text}`)));
}

function section(title, ...items) {
  return items.length ? [html("h3", {}, title), html("ul", {}, ...items)] : [];
}

function details(box) {
  const state = current(), panel = $("details");
  if (!box) {
    panel.replaceChildren(html("h2", {}, "Details"), html("p", {}, "Choose a node for its types, its source line, and what the passes did with it."));
    return;
  }
  if (box.leaf !== undefined || box.output !== undefined) {
    const [kind, name] = box.leaf !== undefined ? data.leaves[box.leaf] : ["output", box.output];
    const value = box.leaf !== undefined ? box.leaf : state.outputs[name];
    panel.replaceChildren(html("h2", {}, name), html("p", {}, kind), ...section("type", link(value, state)), ...readers(value, state));
    return;
  }
  const n = box.nodes[0];
  const record = data.nodes[n];
  const names = record[READS].filter((v) => v !== null);
  const done = fate(n);
  panel.replaceChildren(
    html("h2", {}, opOf(n)),
    html("p", {}, placeOf(n)),
    ...(done.length ? [html("h3", {}, "passes"), ...done.map((t) => html("p", {}, t))] : []),
    ...section("gives", ...record[GIVES].map((v) => link(v, state))),
    ...section("reads", ...names.map((v) => link(v, state))),
    ...(record[ATTRIBUTES] ? [html("h3", {}, "attributes"), html("code", {}, record[ATTRIBUTES])] : []),
    ...record[GIVES].flatMap((v) => readers(v, state)),
    ...source(record),
  );
}

function readers(value, state) {
  const found = state.nodes.filter((n) => data.nodes[n][READS].includes(value));
  const shown = found.slice(0, 12).map((n) => html("li", {}, html("button", { type: "button", onclick: () => reveal(n) },
    html("code", {}, `${opOf(n)} · ${placeOf(n)}`))));
  if (found.length > 12) shown.push(html("li", {}, `and ${found.length - 12} more`));
  return section("read by", ...shown);
}

function fate(n) {
  // What made a node, from what, and what takes it away.
  const said = [], id = identity(n), here = stateOf(view.pass);
  const has = states.map((s) => s.maker.get(id));
  const born = has.findIndex((r) => r !== undefined);
  const passOf = (s) => data.passes.find((p) => p.state === s);
  if (born > 0) {
    const parts = [...states[born].groups].filter(([, fresh]) => identity(fresh) === id).map(([old]) => opOf(old));
    said.push(`made by ${passOf(born).name}${parts.length ? ` from ${parts.join(", ")}` : ""}`);
  }
  const gone = has.findIndex((r, i) => i > here && r === undefined);
  if (gone > 0) {
    const into = [...states[gone].groups].find(([old]) => identity(old) === id);
    said.push(into ? `taken into ${opOf(into[1])} by ${passOf(gone).name}` : `removed by ${passOf(gone).name}`);
  }
  return said;
}

function source(record) {
  const kept = data.lines[`${record[FILE]}:${record[LINE]}`];
  if (!kept || !kept.length) return [];
  const lines = kept[1].map((text, i) => html("span", kept[0] + i === record[LINE] ? { class: "here" } : {},
    html("em", {}, String(kept[0] + i)), text));
  return [html("h3", {}, `${data.files[record[FILE]]}, line ${record[LINE]}`), html("pre", { tabindex: 0 }, ...lines)];
}

function reveal(n) {
  // Opens the layer of a node, moves it to the middle and chooses it.
  const layer = layerOf(n);
  let box = view.place.get(identity(n));
  if (box && box.folded) {
    view.open.add(layer);
    draw();
    box = view.place.get(identity(n));
  }
  if (!box) return;
  const { width, height } = $("graph").getBoundingClientRect();
  view.zoom = Math.max(view.zoom, 0.8);
  view.x = width / 2 - box.x * view.zoom;
  view.y = height / 2 - box.y * view.zoom;
  move();
  choose(box);
}

function tip(event, box) {
  const state = current(), lines = [nameOf(box)];
  if (box.folded) lines.push(`${box.nodes.length} nodes; click to unfold`);
  else if (box.nodes.length) {
    const n = box.nodes[0];
    lines.push(`gives ${typeOf(n)}`);
    for (const v of data.nodes[n][READS]) if (v !== null) {
      const made = state.maker.get(v);
      const type = made === undefined ? data.leaves[v]?.[2] : data.types[data.nodes[made][TYPES][data.nodes[made][GIVES].indexOf(v)]];
      lines.push(`reads ${short(labelOf(v, state), 46)}: ${type}`);
    }
    lines.push(placeOf(n));
  } else lines.push(underOf(box));
  const bounds = $("stage").getBoundingClientRect(), box_ = $("tip");
  box_.textContent = lines.join("\n");
  box_.hidden = false;
  const x = Math.min(event.clientX - bounds.left + 14, bounds.width - box_.offsetWidth - 8);
  const y = Math.min(event.clientY - bounds.top + 14, bounds.height - box_.offsetHeight - 8);
  box_.style.left = `${Math.max(8, x)}px`;
  box_.style.top = `${Math.max(8, y)}px`;
}

// -- passes, misses, search ----------------------------------------------------------------------------------------

function show(pass) {
  view.pass = pass;
  search(false);
  draw();
  [...$("passes").querySelectorAll("button")].forEach((b, i) => {
    i - 1 === pass ? b.setAttribute("aria-current", "step") : b.removeAttribute("aria-current");
    if (i - 1 === pass) b.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  details(view.boxes.find((b) => b.key === view.chosen));
  move();
}

function listPasses() {
  const count = (n) => `${n.toLocaleString("en")} nodes`;
  const entry = (pass, name, said, idle) => html("li", {}, html("button",
    { type: "button", onclick: () => show(pass), class: idle ? "idle" : "" }, name, html("small", {}, said)));
  const first = states[0].nodes.length;
  const entries = data.passes.map((p, i) => {
    const did = Object.entries(p.counts).map(([k, n]) => `${k} ${n}`).join(", ");
    const size = p.before === p.after ? count(p.after) : `${p.before} → ${p.after} nodes`;
    return entry(i, p.name, `${size} · ${p.ms} ms${did ? ` · ${did}` : ""}`, stateOf(i) === stateOf(i - 1));
  });
  $("passes").replaceChildren(entry(-1, "before all passes", count(first), false), ...entries);
}

function listMisses() {
  const summary = $("missed").querySelector("summary");
  summary.textContent = `Not fused, and why: ${data.misses.length}`;
  $("missed").open = data.misses.length > 0;
  if (!data.misses.length) {
    $("misses").replaceChildren(html("li", {}, "Nothing that looked like a layer was left unfused."));
    return;
  }
  $("misses").replaceChildren(...data.misses.map((m) => html("li", {}, html("button", { type: "button", onclick: () => find(m) },
    html("strong", {}, m.rewrite), ` ${m.reason}`,
    html("small", {}, `${data.files[m.file] || "?"}:${m.line} ${data.scopes[m.scope]} · ${m.matched} of ${m.size} ops matched`)))));
}

function find(miss) {
  const there = (n) => data.nodes[n][FILE] === miss.file && data.nodes[n][LINE] === miss.line && data.nodes[n][SCOPE] === miss.scope;
  show(data.passes.length - 1);
  const found = current().nodes.filter((n) => there(n) && !data.nodes[n][STILL]);
  view.hits = new Set(found);
  if (found.length) reveal(found[found.length - 1]);
  draw();
}

function matches(n, words) {
  const state = current(), record = data.nodes[n];
  const params = record[READS].filter((v) => v !== null && data.leaves[v]).map((v) => data.leaves[v][1]);
  const weights = record[READS].filter((v) => v !== null && !data.leaves[v]).map((v) => labelOf(v, state));
  const text = [opOf(n), typeOf(n), placeOf(n), record[ATTRIBUTES], ...params, ...weights].join(" ").toLowerCase();
  return words.every((w) => text.includes(w));
}

function search(go) {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = words.length ? current().nodes.filter((n) => !data.nodes[n][STILL] && matches(n, words)) : [];
  view.hits = new Set(found);
  $("hits").textContent = words.length ? `${found.length} found` : "";
  if (!go) return;
  if (found.length) {
    view.next = ((view.next ?? -1) + 1) % found.length;
    reveal(found[view.next]);
    $("hits").textContent = `${view.next + 1} of ${found.length}`;
  }
  draw();
}

// -- zoom, pan, keys -------------------------------------------------------------------------------------------------

function move() {
  $("world").setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.zoom})`);
}

function intoView(box) {
  const { width, height } = $("graph").getBoundingClientRect();
  const [x, y] = [box.x * view.zoom + view.x, box.y * view.zoom + view.y];
  if (x < 40 || x > width - 40) view.x += width / 2 - x;
  if (y < 60 || y > height - 60) view.y += height / 2 - y;
  move();
}

function fit() {
  const { width, height } = $("graph").getBoundingClientRect(), wide = view.size.right - view.size.left + 60;
  view.zoom = Math.min(1.2, Math.max(0.05, Math.min(width / wide, (height - 110) / (view.size.height + 20))));
  if (view.zoom < 0.45) view.zoom = Math.min(0.9, width / wide);
  view.x = width / 2 - ((view.size.left + view.size.right) / 2) * view.zoom;
  view.y = 56;
  move();
}

function zoom(factor, x, y) {
  const bounds = $("graph").getBoundingClientRect();
  const cx = x ?? bounds.width / 2, cy = y ?? bounds.height / 2;
  const next = Math.min(4, Math.max(0.05, view.zoom * factor));
  view.x = cx - ((cx - view.x) * next) / view.zoom;
  view.y = cy - ((cy - view.y) * next) / view.zoom;
  view.zoom = next;
  move();
}

function listen() {
  const stage = $("graph"), fingers = new Map();
  stage.addEventListener("wheel", (e) => {
    e.preventDefault();
    if (e.ctrlKey || e.metaKey) {
      zoom(Math.exp(-e.deltaY / 300), e.offsetX, e.offsetY);
    } else {
      view.x -= e.shiftKey ? e.deltaY : e.deltaX;
      view.y -= e.shiftKey ? 0 : e.deltaY;
      move();
    }
  }, { passive: false });
  stage.addEventListener("pointerdown", (e) => { fingers.set(e.pointerId, [e.clientX, e.clientY]); view.dragged = false; });
  window.addEventListener("pointermove", (e) => {
    if (!fingers.has(e.pointerId)) return;
    const [x, y] = fingers.get(e.pointerId), others = [...fingers].filter(([id]) => id !== e.pointerId);
    if (others.length) {
      const [ox, oy] = others[0][1], bounds = stage.getBoundingClientRect();
      const before = Math.hypot(x - ox, y - oy), after = Math.hypot(e.clientX - ox, e.clientY - oy);
      zoom(after / Math.max(1, before), (ox + e.clientX) / 2 - bounds.left, (oy + e.clientY) / 2 - bounds.top);
    } else {
      view.x += e.clientX - x;
      view.y += e.clientY - y;
      move();
    }
    if (Math.hypot(e.clientX - x, e.clientY - y) > 3 || view.dragged) { view.dragged = true; stage.classList.add("moving"); }
    fingers.set(e.pointerId, [e.clientX, e.clientY]);
  });
  for (const name of ["pointerup", "pointercancel"]) window.addEventListener(name, (e) => {
    fingers.delete(e.pointerId);
    stage.classList.remove("moving");
  });
  $("larger").addEventListener("click", () => zoom(1.25));
  $("smaller").addEventListener("click", () => zoom(0.8));
  $("fit").addEventListener("click", fit);
  $("fold").addEventListener("click", () => { view.open.clear(); draw(); fit(); });
  $("unfold").addEventListener("click", () => { view.open = new Set(data.layers); draw(); fit(); });
  $("search").addEventListener("input", () => { view.next = undefined; search(false); draw(); });
  $("search").addEventListener("keydown", (e) => { if (e.key === "Enter") search(true); });
  document.addEventListener("keydown", keys);
  window.addEventListener("resize", () => { if (!view.chosen) fit(); });
}

function keys(e) {
  if (e.target.matches("input") || e.ctrlKey || e.metaKey || e.altKey) return;
  const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[e.key];
  if (step && e.target.closest("#graph")) {
    const order = [...view.boxes].sort((a, b) => a.y - b.y || a.x - b.x);
    const next = order[order.indexOf(view.focus) + step];
    if (next) next.element.focus({ preventScroll: true });
    e.preventDefault();
  } else if (e.key === "/") { $("search").focus(); e.preventDefault(); }
  else if (e.key === "[") show(Math.max(-1, view.pass - 1));
  else if (e.key === "]") show(Math.min(data.passes.length - 1, view.pass + 1));
  else if (e.key === "+" || e.key === "=") zoom(1.25);
  else if (e.key === "-") zoom(0.8);
  else if (e.key === "0") fit();
}

document.title = `${data.name}: ${data.pipeline}`;
$("name").textContent = data.name;
$("summary").textContent = `pipeline ${data.pipeline}: ${states[0].nodes.length.toLocaleString("en")} nodes before, `
  + `${states[states.length - 1].nodes.length.toLocaleString("en")} after ${data.passes.length} passes`;
listPasses();
listMisses();
listen();
show(data.passes.length - 1);
fit();
