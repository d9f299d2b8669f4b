// Reads a page of `reader-study` as a browser would, as far as its script needs one: node reader_page.js PAGE.html ORDERS.json
// ORDERS: {name, kept, act: [[what, argument], ...]}; prints {saved: [{name, text}], kept, status, tile, begin} as JSON.
"use strict";
const fs = require("fs");
const [, , page, orders] = process.argv;
const html = fs.readFileSync(page, "utf8").replace(/base64,[^"]*/g, "base64,");
const { kept, act } = JSON.parse(fs.readFileSync(orders, "utf8"));
const script = /<script>([\s\S]*)<\/script>/.exec(html)[1];

class Element {
  constructor(attributes = {}) {
    this.listeners = {};
    this.attributes = attributes;
    this.dataset = {};
    for (const [name, value] of Object.entries(attributes)) if (name.startsWith("data-")) this.dataset[name.slice(5)] = value;
    this.hidden = "hidden" in attributes;
    Object.assign(this, { textContent: "", value: "", disabled: false });
  }
  addEventListener(kind, call) { (this.listeners[kind] ??= []).push(call); }
  fire(kind, event = {}) { for (const call of this.listeners[kind] ?? []) call({ target: this, preventDefault() {}, ...event }); }
  setAttribute(name, value) { this.attributes[name] = value; }
  focus() {}
  remove() {}
  appendChild() {}
  click() {
    if (this.download) saved.push({ name: this.download, text: this.href.parts.join("") });
    else if (!this.disabled) this.fire("click");
  }
}

const saved = [];
const elements = [...html.matchAll(/<([a-z0-9]+)((?:\s+[a-z-]+(?:="[^"]*")?)*)\s*>/g)].map(([, tag, said]) => {
  const attributes = {};
  for (const [, name, value] of said.matchAll(/([a-z-]+)(?:="([^"]*)")?/g)) attributes[name] = value ?? "";
  return Object.assign(new Element(attributes), { tag });
});
const memory = { ...kept };
const refuses = kept === null;
let clock = 0;
const document = Object.assign(new Element(), {
  documentElement: elements.find((each) => each.tag === "html"),
  body: new Element(),
  hidden: false,
  getElementById: (name) => elements.find((each) => each.attributes.id === name),
  querySelectorAll: (asked) => {
    const [, tag, name] = /^([a-z]+)\[([a-z-]+)\]$/.exec(asked);
    return elements.filter((each) => each.tag === tag && name in each.attributes);
  },
  createElement: () => new Element(),
});
const window = new Element();
const around = {
  document, window,
  localStorage: {
    getItem: (name) => { if (refuses) throw new Error("no storage"); return memory[name] ?? null; },
    setItem: (name, value) => { if (refuses) throw new Error("no storage"); memory[name] = value; },
  },
  performance: { now: () => clock },
  Blob: class { constructor(parts) { this.parts = parts; } },
  URL: { createObjectURL: (blob) => blob, revokeObjectURL() {} },
  setTimeout() {},
  confirm: () => true,
};
new Function(...Object.keys(around), script)(...Object.values(around));
for (const [what, argument] of act) {
  if (what === "key") document.fire("keydown", { key: argument, target: document.body });
  else if (what === "key in name") document.fire("keydown", { key: argument, target: document.getElementById("reader") });
  else if (what === "type") { document.getElementById("reader").value = argument; document.getElementById("reader").fire("input"); }
  else if (what === "click") document.getElementById(argument).click();
  else if (what === "wait") clock += 1000 * argument;
  else if (what === "hide") { document.hidden = argument; document.fire("visibilitychange"); }
}
const shown = document.querySelectorAll("figure[data-tile]").filter((each) => !each.hidden).map((each) => Number(each.dataset.tile));
console.log(JSON.stringify({
  saved, kept: memory, shown, status: document.getElementById("status").textContent, begin: document.getElementById("begin").textContent,
}));
