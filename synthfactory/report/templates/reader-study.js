"use strict";
(() => {
  const page = document.documentElement.dataset.page;
  const place = "synthfactory-reader-study-" + page;
  const find = (name) => document.getElementById(name);
  const tiles = Array.from(document.querySelectorAll("figure[data-tile]"));
  const choices = Array.from(document.querySelectorAll("button[data-question]"));
  const words = { called: ["real", "synthetic"], label: ["yes", "no", "cannot say"] };
  const keys = {
    r: ["called", "real"], s: ["called", "synthetic"],
    y: ["label", "yes"], n: ["label", "no"], c: ["label", "cannot say"],
  };
  let at = -1; // the tile that is shown; -1: the introduction
  let since = null; // when it came into sight
  let answers = blank();

  function blank() {
    return tiles.map(() => ({ called: "", label: "", seconds: 0 }));
  }

  function tell(text) {
    find("status").textContent = text;
  }

  // What is kept may be of anyone's making: only what this page could have written is taken.
  function recall() {
    try {
      const kept = JSON.parse(localStorage.getItem(place));
      if (kept === null) return;
      if (typeof kept.reader === "string") find("reader").value = kept.reader.slice(0, 60);
      answers = answers.map((none, number) => {
        const each = kept.answers[number];
        const seconds = Number(each.seconds);
        return {
          called: words.called.includes(each.called) ? each.called : "",
          label: words.label.includes(each.label) ? each.label : "",
          seconds: Number.isFinite(seconds) && seconds > 0 ? seconds : 0,
        };
      });
    } catch (error) {
      answers = blank();
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify({ reader: find("reader").value, answers }));
    } catch (error) {
      tell("This browser keeps nothing: download your answers before you close the page.");
    }
  }

  function unanswered() {
    return answers.filter((each) => !each.called || !each.label).length;
  }

  function stopClock() {
    if (since !== null && at >= 0) answers[at].seconds += (performance.now() - since) / 1000;
    since = null;
  }

  function startClock() {
    since = at >= 0 && !document.hidden ? performance.now() : null;
  }

  function progress() {
    const left = unanswered();
    tell(left ? `${tiles.length - left} of ${tiles.length} tiles answered` : `All ${tiles.length} tiles are answered: download your answers.`);
  }

  function draw() {
    find("intro").hidden = at >= 0;
    find("trial").hidden = at < 0;
    tiles.forEach((tile, number) => { tile.hidden = number !== at; });
    if (at < 0) return;
    find("where").textContent = `Tile ${at + 1} of ${tiles.length}`;
    find("back").disabled = at === 0;
    find("next").disabled = at === tiles.length - 1;
    for (const choice of choices) {
      choice.setAttribute("aria-pressed", String(answers[at][choice.dataset.question] === choice.dataset.answer));
    }
  }

  function show(number) {
    if (number < 0 || number >= tiles.length) return;
    stopClock();
    at = number;
    startClock();
    progress();
    keep();
    draw();
  }

  function showOpen() {
    const first = answers.findIndex((each) => !each.called || !each.label);
    show(first < 0 ? tiles.length - 1 : first);
  }

  function answer(question, word) {
    if (at < 0) return;
    stopClock();
    answers[at][question] = answers[at][question] === word ? "" : word;
    startClock();
    progress();
    keep();
    draw();
  }

  // No control characters or quotes, and nothing in front that a spreadsheet would compute.
  function readerName() {
    return find("reader").value.replace(/[\u0000-\u001f\u007f"]/g, " ").replace(/^[\s=+@-]+/, "").trim().slice(0, 60);
  }

  function download() {
    stopClock();
    startClock();
    keep();
    const name = readerName();
    if (!name) {
      tell("Write your name (or any word that stands for you) first.");
      find("reader").focus();
      return;
    }
    const lines = answers.map((each, number) =>
      [number + 1, each.called, each.label, each.seconds > 0 ? each.seconds.toFixed(1) : "", `"${name}"`, page].join(","));
    const text = ["tile,real_or_synthetic,label_right,seconds,reader,page", ...lines, ""].join("\r\n");
    find("text").value = text;
    find("copy").hidden = false;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = `answers-${name.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-+|-+$/g, "") || "reader"}.csv`;
    document.body.appendChild(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    const left = unanswered();
    tell(`${link.download} is saved with your downloads` + (left ? `; ${left} of ${tiles.length} tiles are not answered yet.` : "."));
  }

  function anew() {
    if (!confirm("Forget the name and all answers on this page?")) return;
    at = -1;
    since = null;
    answers = blank();
    find("reader").value = "";
    find("text").value = "";
    find("copy").hidden = true;
    find("begin").textContent = "Begin";
    keep();
    tell("Nothing is answered.");
    draw();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === find("reader") || at < 0) return;
    const key = event.key.toLowerCase();
    if (key === "arrowright") show(at + 1);
    else if (key === "arrowleft") show(at - 1);
    else if (Object.hasOwn(keys, key) && !event.repeat) answer(...keys[key]);
    else return;
    event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) stopClock();
    else startClock();
    keep();
  });
  window.addEventListener("pagehide", () => {
    stopClock();
    keep();
  });
  for (const choice of choices) choice.addEventListener("click", () => answer(choice.dataset.question, choice.dataset.answer));
  find("begin").addEventListener("click", showOpen);
  find("open").addEventListener("click", showOpen);
  find("back").addEventListener("click", () => show(at - 1));
  find("next").addEventListener("click", () => show(at + 1));
  find("download").addEventListener("click", download);
  find("anew").addEventListener("click", anew);
  find("reader").addEventListener("input", keep);

  recall();
  const left = unanswered();
  if (left < tiles.length) find("begin").textContent = left ? `Go on (${left} left)` : "Look at the answers";
  draw();
})();
