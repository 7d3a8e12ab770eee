"use strict";
(() => {
  const data = JSON.parse(document.getElementById("graphs").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const panel = document.getElementById("panel");
  const views = data.sides.map((side, number) => ({ side, number, svg: document.getElementById(`graph-${number}`), open: new Set(), boxes: [] }));
  const backward = Object.fromEntries(Object.entries(data.pairs).map(([before, after]) => [after, before]));
  if (!views[0].svg) return;

  const make = (name, attributes, parent, text) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    if (parent) parent.append(element);
    return element;
  };
  const short = (text, length) => text.length > length ? "…" + text.slice(text.length - length + 1) : text;
  const MARK = { added: "+ ", removed: "− ", replaced: "~ ", changed: "* ", mixed: "", same: "" };

  // The boxes to draw: an open one is drawn node by node.
  function boxesOf(view) {
    const found = [];
    view.side.boxes.forEach((box, index) => {
      if (view.open.has(index)) box.nodes.forEach((n) => found.push({ title: view.side.nodes[n][1], status: view.side.nodes[n][2], nodes: [n], from: index }));
      else found.push({ ...box, index });
    });
    return found;
  }

  function draw(view) {
    const boxes = view.boxes = boxesOf(view);
    const owner = new Map();
    boxes.forEach((box, i) => box.nodes.forEach((n) => owner.set(n, i)));
    const graph = new dagre.Graph();
    graph.setGraph({ rankdir: "TB", nodesep: 18, ranksep: 26, marginx: 12, marginy: 12 });
    graph.setDefaultEdgeLabel(() => ({}));
    boxes.forEach((box, i) => {
      const title = MARK[box.status] + box.title;
      const key = box.nodes.length === 1 ? short(view.side.nodes[box.nodes[0]][0], 30) : "";
      box.lines = [title, key];
      graph.setNode(String(i), { width: Math.max(90, 8 + Math.max(7.6 * title.length, 6.4 * key.length)), height: key ? 40 : 28 });
    });
    const seen = new Set();
    for (const [from, to] of view.side.edges) {
      const a = owner.get(from), b = owner.get(to), name = `${a} ${b}`;
      if (a !== b && !seen.has(name)) { seen.add(name); graph.setEdge(String(a), String(b)); }
    }
    dagre.layout(graph);
    view.svg.replaceChildren();
    const defs = make("defs", {}, view.svg);
    const marker = make("marker", { id: `head-${view.number}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, defs);
    make("path", { d: "M0,0 L8,4 L0,8 z", class: "head" }, marker);
    view.world = make("g", {}, view.svg);
    for (const edge of graph.edges()) {
      const points = graph.edge(edge).points.map((p) => `${p.x.toFixed(1)},${p.y.toFixed(1)}`);
      make("path", { d: `M${points.join(" L")}`, class: "arrow", "marker-end": `url(#head-${view.number})` }, view.world);
    }
    boxes.forEach((box, i) => {
      const at = graph.node(String(i));
      const group = make("g", { class: `box ${box.status}${box.nodes.length > 1 ? " group" : ""}`, transform: `translate(${at.x},${at.y})`, tabindex: 0 }, view.world);
      make("rect", { x: -at.width / 2, y: -at.height / 2, width: at.width, height: at.height, rx: 6 }, group);
      make("text", { y: box.lines[1] ? -2 : 4 }, group, box.lines[0]);
      if (box.lines[1]) make("text", { y: 13, class: "key" }, group, box.lines[1]);
      make("title", {}, group, box.nodes.length === 1 ? view.side.nodes[box.nodes[0]][0] : box.title);
      if (box.nodes.length === 1) group.dataset.key = view.side.nodes[box.nodes[0]][0];
      group.addEventListener("click", () => { if (!view.dragged) choose(view, box, group); });
      group.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(view, box, group); });
      box.element = group; box.at = at;
    });
    const size = graph.graph();
    view.size = { width: size.width || 1, height: size.height || 1 };
  }

  // What is chosen: its numbers in the panel, its partner in the other picture marked.
  function choose(view, box, element) {
    document.querySelectorAll(".box.chosen, .box.partner").forEach((each) => each.classList.remove("chosen", "partner"));
    element.classList.add("chosen");
    panel.replaceChildren();
    const html = (name, text, parent = panel, className = "") => { const e = document.createElement(name); e.textContent = text; if (className) e.className = className; parent.append(e); return e; };
    const row = (name, value) => { html("dt", name, list); html("dd", value, list); };
    let list;
    const tell = (number) => {
      const change = data.changes[number];
      row(change.kind, change.title);
      change.words.forEach((text) => row("", text));
    };
    if (box.nodes.length > 1) {
      const numbers = new Set(box.nodes.map((n) => view.side.nodes[n][3]));
      html("h3", numbers.size === 1 && box.status !== "same" ? `${box.status}: ${box.title}` : box.title);
      list = html("dl", "");
      if (numbers.size === 1 && box.status !== "same") {
        tell([...numbers][0]);
        for (const n of box.nodes) {
          const facts = view.side.facts[n];
          if (facts.SQNR) row("SQNR", `${view.side.nodes[n][0]}: ${facts.SQNR}`);
          for (const site of facts.sites || []) for (const [name, value] of Object.entries(site)) row(name, String(value));
        }
      }
      if (box.opens) {
        const button = html("button", "open this box");
        button.type = "button"; button.className = "open";
        button.addEventListener("click", () => { view.open.add(box.index); draw(view); show(view, box.nodes[0]); });
      }
      partners(view, box);
      html("p", box.nodes.slice(0, 200).map((n) => view.side.nodes[n][0]).join(", ") + (box.nodes.length > 200 ? ", …" : ""), panel, "name");
      return;
    }
    const [key, op, status] = view.side.nodes[box.nodes[0]], facts = view.side.facts[box.nodes[0]];
    html("h3", `${op}${status === "same" ? "" : ", " + status}`);
    html("p", key, panel, "name");
    list = html("dl", "");
    if (facts.name && facts.name !== key) row("name", facts.name);
    if (facts.SQNR) row("SQNR", facts.SQNR);
    for (const site of facts.sites || []) for (const [name, value] of Object.entries(site)) row(name, String(value));
    if (facts.change !== undefined) tell(facts.change);
    for (const text of facts.weights || []) row("reads", text);
    for (const [name, value] of Object.entries(facts.attributes || {})) row(name, value);
    if (box.from !== undefined) {
      const button = html("button", "close its box again");
      button.type = "button";
      button.addEventListener("click", () => { view.open.delete(box.from); draw(view); fit(view); });
    }
    partners(view, box);
  }

  function partners(view, box) {
    const other = views[1 - view.number], theirs = new Set(), numbers = new Set();
    for (const n of box.nodes) {
      const [key, , , change] = view.side.nodes[n];
      if (change >= 0) numbers.add(change);
      else theirs.add(view.number === 0 ? data.pairs[key] : backward[key]);
    }
    const found = other.boxes.filter((each) => each.nodes.some((n) => {
      const [key, , , change] = other.side.nodes[n];
      return change >= 0 ? numbers.has(change) : theirs.has(key);
    }));
    found.forEach((each) => each.element.classList.add("partner"));
    if (found.length) centre(other, found[0].at, other.scale);
  }

  function place(view) { view.world.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.scale})`); }
  function fit(view) {
    const box = view.svg.getBoundingClientRect();
    view.scale = Math.min(1.2, Math.max(0.02, Math.min(box.width / view.size.width, box.height / view.size.height)));
    view.x = (box.width - view.scale * view.size.width) / 2;
    view.y = Math.max(0, (box.height - view.scale * view.size.height) / 2);
    place(view);
  }
  function centre(view, at, scale) {
    const box = view.svg.getBoundingClientRect();
    view.scale = scale; view.x = box.width / 2 - scale * at.x; view.y = box.height / 2 - scale * at.y;
    place(view);
  }
  function show(view, node) {
    const box = view.boxes.find((each) => each.nodes.includes(node));
    if (box) { centre(view, box.at, Math.max(view.scale, 0.7)); choose(view, box, box.element); }
  }
  // A readable start: all of a small graph, else the first change at a size that can be read.
  function start(view) {
    fit(view);
    if (view.scale >= 0.55) return;
    const marked = view.boxes.filter((each) => each.status !== "same");
    const box = (marked.length ? marked : view.boxes).reduce((one, two) => (two.at.y < one.at.y ? two : one));
    if (box) { centre(view, box.at, 0.8); view.y = 70 - 0.8 * box.at.y; place(view); }
  }
  function zoom(view, factor, x, y) {
    const scale = Math.min(4, Math.max(0.02, view.scale * factor));
    view.x = x - (x - view.x) * scale / view.scale; view.y = y - (y - view.y) * scale / view.scale; view.scale = scale;
    place(view);
  }

  for (const view of views) {
    draw(view); start(view);
    const pointers = new Map();
    const local = (event) => { const box = view.svg.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    view.svg.addEventListener("wheel", (event) => { event.preventDefault(); zoom(view, Math.exp(-event.deltaY / 400), ...local(event)); }, { passive: false });
    view.svg.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, local(event)); view.dragged = false; });
    view.svg.addEventListener("pointermove", (event) => {
      const old = pointers.get(event.pointerId);
      if (!old) return;
      const now = local(event), others = [...pointers].filter(([id]) => id !== event.pointerId);
      if (Math.hypot(now[0] - old[0], now[1] - old[1]) > 2) { view.dragged = true; try { view.svg.setPointerCapture(event.pointerId); } catch { /* the pointer is gone */ } }
      if (others.length === 1) {
        const [x, y] = others[0][1];
        zoom(view, Math.hypot(now[0] - x, now[1] - y) / Math.max(1, Math.hypot(old[0] - x, old[1] - y)), x, y);
      } else if (view.dragged) { view.x += now[0] - old[0]; view.y += now[1] - old[1]; place(view); } else return;
      pointers.set(event.pointerId, now);
    });
    for (const name of ["pointerup", "pointercancel"]) view.svg.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  document.querySelectorAll(".fit").forEach((button) => button.addEventListener("click", () => fit(views[Number(button.dataset.side)])));
})();
