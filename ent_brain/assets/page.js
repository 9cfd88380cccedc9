// The page of an evaluation or of recordings. All that is shown comes from the JSON in the page, and every text of it
// becomes text, never markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const STEP = 0.5; // seconds that an arrow key moves

  function make(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") element.className = value;
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  function paint(element, emotion) {
    const { color, hatch } = data.emotions[emotion];
    element.classList.add("emotion");
    element.dataset.hatch = hatch;
    element.style.setProperty("--color", color);
    return element;
  }
  const nameOf = (emotion) => data.emotions[emotion].name;
  const letterOf = (emotion) => data.emotions[emotion].letter;
  const swatch = (emotion) => paint(make("i", { class: "swatch", "aria-hidden": "true" }), emotion);
  const decimal = (value, digits = 1) => (value === null ? "–" : value.toFixed(digits));
  const percent = (share) => `${Math.round(100 * share)} %`;
  const bytes = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

  // --- results and legend

  data.emotions.forEach(({ name, letter }, index) => {
    byId("legend").append(make("li", {}, swatch(index), letter === name ? name : `${name} (${letter})`));
  });
  const { columns, rows } = data.results;
  if (rows.length) {
    const isNumber = (index) => rows.every((row) => /^(-|[\d.]+)$/.test(row[index]));
    const look = (index) => (isNumber(index) ? { class: "number" } : {});
    const cells = (texts, tag, more) =>
      make("tr", {}, ...texts.map((text, index) => make(tag, { ...look(index), ...more }, text)));
    const table = byId("results").querySelector("table");
    table.append(make("thead", {}, cells(columns, "th", { scope: "col" })));
    table.append(make("tbody", {}, ...rows.map((row) => cells(row, "td"))));
    byId("results").hidden = false;
  }

  // Seconds as people read them: 12.3 s, 4:05 or 1:02:30.
  function lasting(seconds) {
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const whole = Math.round(seconds);
    const two = (value) => String(value).padStart(2, "0");
    const hours = Math.floor(whole / 3600);
    const minutes = Math.floor(whole / 60) % 60;
    return (hours ? `${hours}:${two(minutes)}` : `${minutes}`) + `:${two(whole % 60)}`;
  }

  // --- the list

  const utterances = data.utterances;
  utterances.forEach((utterance) => {
    utterance.address = `#${encodeURIComponent(utterance.set)}/${encodeURIComponent(utterance.id)}`;
    utterance.wrong =
      utterance.target !== null && utterance.emotion !== null && utterance.target !== utterance.emotion;
    const words = utterance.words.map(([text]) => text);
    utterance.sought = `${utterance.id} ${words.join(" ")} ${utterance.reference ?? ""}`.toLowerCase();
  });
  const known = (key) => utterances.some((utterance) => utterance[key] !== null);
  const emotionOf = ({ target, emotion }) => (target === null ? emotion : target);
  const collator = new Intl.Collator("en", { numeric: true });
  const byName = (a, b) => collator.compare(a.id, b.id) || collator.compare(a.set, b.set);
  const COLUMNS = [
    { key: "id", title: "id", order: byName },
    {
      key: "emotion",
      title: "emotion",
      look: "emotion-column",
      order: (a, b) => emotionOf(a) - emotionOf(b) || a.wrong - b.wrong || a.emotion - b.emotion,
    },
    { key: "wer", title: "WER", look: "number-column" },
    { key: "eder", title: "EDER", look: "number-column" },
    { key: "seconds", title: "s", look: "number-column short" },
  ].filter(({ key }) => known(key));
  let sorting = { key: "id", direction: 1 };
  let shown = [];
  let chosen = null;

  function emotionCell({ target, emotion, wrong }) {
    if (target === null && emotion === null) return make("td", {}, "–");
    const first = target === null ? emotion : target;
    const cell = make("td", {}, swatch(first), nameOf(first));
    if (wrong) cell.append(make("small", {}, "≠ ", swatch(emotion), nameOf(emotion)));
    return cell;
  }

  // An id may break after its underscores and the like.
  function breakable(text) {
    return text.split(/(?<=[^A-Za-z0-9])/).flatMap((part) => [part, make("wbr")]);
  }

  function makeRow(utterance) {
    const row = make("tr");
    for (const { key, look } of COLUMNS) {
      if (key === "id") row.append(make("td", {}, make("a", { href: utterance.address }, ...breakable(utterance.id))));
      else if (key === "emotion") row.append(emotionCell(utterance));
      else row.append(make("td", { class: look ? "number" : "" }, decimal(utterance[key])));
    }
    row.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      show(utterance, { scroll: true });
    });
    return row;
  }

  const list = byId("list");
  const body = list.querySelector("tbody");
  function makeList() {
    const columns = COLUMNS.map(({ look = "" }) => make("col", { class: look }));
    list.querySelector("table").prepend(make("colgroup", {}, ...columns));
    const headers = COLUMNS.map(({ key, title, look }) => {
      const button = make("button", { type: "button" }, title);
      button.addEventListener("click", () => sortBy(key));
      return make("th", { scope: "col", "data-key": key, class: look && key !== "emotion" ? "number" : "" }, button);
    });
    list.querySelector("thead").append(make("tr", {}, ...headers));
    const option = (value, text) => make("option", { value }, text);
    const emotions = data.emotions.map(({ name }, index) => option(index, name));
    byId("by-emotion").append(option("", "any"), ...emotions);
    if (utterances.some(({ wrong }) => wrong)) byId("by-emotion").append(option("wrong", "told wrongly"));
    byId("by-emotion").parentElement.hidden = !COLUMNS.some(({ key }) => key === "emotion");
    const sets = [...new Set(utterances.map(({ set }) => set))];
    byId("by-set").append(option("", "all"), ...sets.map((set, index) => option(index, set)));
    byId("set-label").hidden = sets.length < 2;
    for (const utterance of utterances) utterance.row = makeRow(utterance);
    const filter = () => fill(sets);
    for (const event of ["input", "change"]) list.querySelector("form").addEventListener(event, filter);
    list.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    filter();
    list.hidden = false;
  }

  function sortBy(key) {
    const numbers = key !== "id" && key !== "emotion"; // of these the largest are looked for
    const first = numbers ? -1 : 1;
    sorting = { key, direction: sorting.key === key ? -sorting.direction : first };
    fill([...new Set(utterances.map(({ set }) => set))]);
  }

  function fill(sets) {
    const { key, direction } = sorting;
    const { order } = COLUMNS.find((column) => column.key === key);
    const compare = order ?? ((a, b) => (a[key] ?? -1) - (b[key] ?? -1));
    const sought = byId("find").value.trim().toLowerCase();
    const emotion = byId("by-emotion").value;
    const set = byId("by-set").value;
    shown = utterances
      .filter(
        (utterance) =>
          utterance.sought.includes(sought) &&
          (emotion === "" || (emotion === "wrong" ? utterance.wrong : emotionOf(utterance) === Number(emotion))) &&
          (set === "" || utterance.set === sets[set]),
      )
      .sort((a, b) => direction * compare(a, b) || byName(a, b));
    body.replaceChildren(...shown.map(({ row }) => row));
    byId("count").value = `${shown.length} of ${utterances.length}`;
    for (const header of list.querySelectorAll("th")) {
      const active = header.dataset.key === key;
      if (active) header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    }
  }

  // --- the player

  const audio = new Audio();
  audio.preload = "auto";
  audio.id = "audio";
  document.body.append(audio);
  const stage = byId("stage");
  let waveform = null;
  let buttons = []; // of the words, with their times
  let nextTick = 0;

  const colors = () => {
    const wave = getComputedStyle(document.documentElement).getPropertyValue("--wave").trim();
    return { waveColor: wave, progressColor: wave };
  };

  function place(element, start, end, seconds) {
    element.style.left = `${(100 * start) / seconds}%`;
    element.style.width = `${(100 * (end - start)) / seconds}%`;
    return element;
  }

  function makeTrack(name, segments, seconds) {
    const track = make("div", { class: "track", "data-name": name });
    for (const [start, end, emotion] of segments) {
      const label = make("span", { class: "name", "data-emotion": emotion });
      track.append(paint(place(make("div", {}, label), start, end, seconds), emotion));
    }
    return track;
  }

  // A name that has no room is a letter, and one without room for that is left out.
  function fitNames() {
    const widths = new Map();
    const probe = make("span", { class: "name" });
    const track = make("div", { class: "track" }, probe);
    stage.append(track);
    for (const { name, letter } of data.emotions) {
      for (const text of [name, letter]) {
        probe.textContent = text;
        widths.set(text, probe.offsetWidth);
      }
    }
    track.remove();
    const labels = [...stage.querySelectorAll(".track .name")];
    const rooms = labels.map((label) => label.parentElement.clientWidth); // all before any changes
    labels.forEach((label, index) => {
      const { name, letter } = data.emotions[label.dataset.emotion];
      label.textContent = [name, letter].find((text) => widths.get(text) <= rooms[index]) ?? "";
      label.parentElement.classList.toggle("narrow", rooms[index] < 4);
    });
  }

  function makeProbabilities({ frames, frame, seconds }) {
    const track = make("div", { class: "track", "data-name": "probability of each emotion" });
    const tall = make("div", { class: "track tall" });
    tall.style.margin = "0";
    const count = data.emotions.length;
    const values = bytes(frames);
    const steps = values.length / count;
    const bottoms = new Float64Array(steps);
    for (let emotion = 0; emotion < count; emotion++) {
      const upper = [];
      const lower = [];
      for (let t = 0; t < steps; t++) {
        const from = Math.min(100, (100 * t * frame) / seconds).toFixed(3);
        const to = Math.min(100, (100 * (t + 1) * frame) / seconds).toFixed(3);
        const total = values.subarray(t * count, (t + 1) * count).reduce((a, b) => a + b, 0);
        const low = (100 - 100 * bottoms[t]).toFixed(2);
        bottoms[t] += values[t * count + emotion] / total;
        const high = (100 - 100 * bottoms[t]).toFixed(2);
        upper.push(`${from}% ${high}%`, `${to}% ${high}%`);
        lower.push(`${from}% ${low}%`, `${to}% ${low}%`);
      }
      const band = paint(make("div"), emotion);
      band.style.clipPath = `polygon(${[...upper, ...lower.reverse()].join(", ")})`;
      tall.append(band);
    }
    track.style.height = "auto";
    track.append(tall);
    return track;
  }

  // What the tracks show, for those who do not see them.
  function describe(name, segments) {
    const parts = segments.map(([start, end, emotion]) => `${start.toFixed(2)} to ${end.toFixed(2)} ${nameOf(emotion)}`);
    return `${name}: ${parts.join(", ")}. `;
  }

  function makeAxis(seconds) {
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600].find((size) => seconds / size <= 8) ?? 1800;
    const ticks = [];
    for (let tick = 0; tick < 0.96 * seconds; tick += step) {
      const label = make("span", {}, `${Number(tick.toFixed(1))}${tick ? "" : " s"}`);
      label.style.left = `${(100 * tick) / seconds}%`;
      ticks.push(label);
    }
    byId("axis").replaceChildren(...ticks);
  }

  function makeWord([text, start, end, emotion, probability]) {
    const button = make("button", { type: "button", class: "word" }, text);
    let felt = "";
    if (emotion !== null) {
      felt = `, ${nameOf(emotion)} ${percent(probability)}`;
      if (emotion !== data.neutral) button.append(make("sup", { "aria-hidden": "true" }, letterOf(emotion)));
      button.append(paint(make("i"), emotion));
    }
    const told = `${start.toFixed(2)} to ${end.toFixed(2)} s${felt}`;
    button.title = told;
    button.setAttribute("aria-label", `${text}, ${told}`);
    button.addEventListener("click", () => seek(start));
    buttons.push({ button, start, end });
    return button;
  }

  // Each column of the comparison is a word of the target, one of the prediction, or both.
  function makeWords({ words, pairs }) {
    buttons = [];
    const marks = { S: "substituted", I: "inserted", D: "deleted" };
    const columns = (pairs ?? words.map((_, index) => [null, index])).map(([target, index]) => {
      const predicted = index === null ? make("span", { class: "absent" }) : makeWord(words[index]);
      const pair = make("span", { class: "pair" });
      if (pairs === null) {
        pair.append(predicted);
        return pair;
      }
      const same = index !== null && target === words[index][0];
      const mark = same ? "" : index === null ? "D" : target === null ? "I" : "S";
      const above = make(mark && target !== null ? "del" : "span", { class: "target" }, target ?? "");
      pair.append(above, predicted);
      if (mark) {
        if (index !== null) predicted.firstChild.replaceWith(make("ins", {}, words[index][0]));
        pair.append(make("abbr", { title: marks[mark] }, mark));
      }
      return pair;
    });
    byId("words").classList.toggle("alone", pairs === null);
    byId("words").replaceChildren(...(columns.length ? columns : ["No words."]));
    byId("marks").hidden = !columns.some((column) => column.querySelector("abbr"));
  }

  // Of the words, made when somebody looks at it.
  function fillTable() {
    const details = byId("word-details");
    details.hidden = !chosen.words.length;
    if (!details.open) return;
    const [head, rows] = ["thead", "tbody"].map((name) => details.querySelector(name));
    const felt = data.emotions.length > 0;
    const titles = ["word", "start, s", "end, s", ...(felt ? ["emotion", "probability"] : [])];
    const look = (index) => (index === 0 || index === 3 ? {} : { class: "number" });
    head.replaceChildren(make("tr", {}, ...titles.map((title, i) => make("th", { scope: "col", ...look(i) }, title))));
    rows.replaceChildren(
      ...chosen.words.map(([text, start, end, emotion, probability]) => {
        const cells = [[text], [start.toFixed(2)], [end.toFixed(2)]];
        if (felt) cells.push(emotion === null ? ["–"] : [swatch(emotion), nameOf(emotion)], [decimal(probability, 2)]);
        return make("tr", {}, ...cells.map((cell, i) => make("td", look(i), ...cell)));
      }),
    );
  }
  byId("word-details").addEventListener("toggle", () => chosen && fillTable());

  function tell({ target, emotion, probabilities, wrong, wer, eder, seconds, set, notes }) {
    const parts = [];
    if (target !== null) parts.push(["target ", swatch(target), nameOf(target)]);
    if (emotion !== null) {
      const verdict = target === null ? "" : wrong ? " ✗" : " ✓";
      parts.push(["predicted ", swatch(emotion), `${nameOf(emotion)} ${percent(probabilities[emotion])}${verdict}`]);
    }
    if (wer !== null) parts.push([`WER ${decimal(wer)} %`]);
    if (eder !== null) parts.push([`EDER ${decimal(eder)} %`]);
    parts.push([`${seconds.toFixed(2)} s`]);
    if (set) parts.push([set]);
    byId("told").replaceChildren(...parts.flatMap((part) => [make("span", {}, ...part), " "]));
    byId("notes").textContent = notes.map((note) => `Note: ${note}.`).join(" ");
  }

  let address = null;
  function setSource({ audio: embedded, link }) {
    audio.pause();
    if (address) URL.revokeObjectURL(address);
    address = embedded ? URL.createObjectURL(new Blob([bytes(embedded)], { type: "audio/mpeg" })) : null;
    const source = address ?? link;
    if (source) audio.src = source;
    else audio.removeAttribute("src");
    audio.playbackRate = Number(byId("speed").value);
    byId("play").disabled = !source;
    byId("controls").hidden = !source;
    byId("no-audio").hidden = Boolean(source);
    byId("no-audio").textContent = "Its sound could not be read when this page was made.";
  }

  // In the list's own frame; the page stays where it is.
  function reveal(row) {
    const frame = byId("rows").getBoundingClientRect();
    const box = row.getBoundingClientRect();
    const hidden = box.top < frame.top + list.querySelector("thead").offsetHeight || box.bottom > frame.bottom;
    if (hidden) byId("rows").scrollTop += box.top - frame.top - frame.height / 3;
  }

  function show(utterance, { scroll = false } = {}) {
    if (chosen) chosen.row.removeAttribute("aria-current");
    chosen = utterance;
    utterance.row.setAttribute("aria-current", "true");
    if (location.protocol !== "about:") history.replaceState(null, "", utterance.address);
    byId("utterance-title").textContent = utterance.id;
    byId("utterance").hidden = false;
    tell(utterance);
    waveform?.destroy();
    waveform = null;
    setSource(utterance);
    const { seconds, segments, targets } = utterance;
    const bands = segments.map(([start, end, emotion]) => paint(place(make("div"), start, end, seconds), emotion));
    const drawing = make("div", { class: "drawing" });
    byId("waveform").replaceChildren(...bands, drawing);
    const tracks = [];
    if (targets) tracks.push(makeTrack("target", targets, seconds));
    if (segments.length) tracks.push(makeTrack("predicted", segments, seconds));
    if (utterance.frames) tracks.push(makeProbabilities(utterance));
    byId("tracks").replaceChildren(...tracks);
    byId("intervals").textContent =
      (targets ? describe("target", targets) : "") + (segments.length ? describe("predicted", segments) : "");
    stage.setAttribute("aria-valuemax", seconds.toFixed(2));
    makeAxis(seconds);
    makeWords(utterance);
    fillTable();
    byId("waveform").hidden = !utterance.peaks;
    if (utterance.peaks) {
      waveform = WaveSurfer.create({
        container: drawing,
        media: audio,
        peaks: [Float32Array.from(bytes(utterance.peaks), (peak) => peak / 255)],
        duration: seconds,
        height: "auto",
        cursorWidth: 0,
        interact: false,
        normalize: true,
        ...colors(),
      });
    }
    fitNames();
    tick();
    reveal(utterance.row);
    if (scroll) {
      const box = byId("utterance").getBoundingClientRect();
      if (box.top < 0 || box.top > innerHeight / 2) byId("utterance").scrollIntoView({ block: "start" });
    }
  }

  function seek(seconds) {
    if (!chosen) return;
    audio.currentTime = Math.min(Math.max(0, seconds), chosen.seconds);
    tick();
  }

  function tick() {
    const now = audio.currentTime;
    const { seconds } = chosen;
    byId("playhead").style.left = `${Math.min(100, (100 * now) / seconds)}%`;
    byId("clock").value = `${now.toFixed(2)} / ${seconds.toFixed(2)} s`;
    stage.setAttribute("aria-valuenow", now.toFixed(2));
    stage.setAttribute("aria-valuetext", `${now.toFixed(2)} of ${seconds.toFixed(2)} seconds`);
    for (const { button, start, end } of buttons) {
      const current = start <= now && now < end && (now > 0 || !audio.paused);
      if (current === button.hasAttribute("aria-current")) continue;
      if (current) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
      if (current && !audio.paused) keepInView(button);
    }
    cancelAnimationFrame(nextTick); // of a loop that runs already
    if (!audio.paused) nextTick = requestAnimationFrame(tick);
  }

  // The words of a long recording have a frame of their own, too.
  function keepInView(button) {
    const frame = byId("words").getBoundingClientRect();
    const box = button.getBoundingClientRect();
    if (box.top < frame.top || box.bottom > frame.bottom) byId("words").scrollTop += box.top - frame.top - 40;
  }

  function toggle() {
    if (audio.paused) audio.play().catch(failed);
    else audio.pause();
  }

  function failed() {
    if (!audio.error) return; // it was only interrupted
    if (audio.error.code !== MediaError.MEDIA_ERR_SRC_NOT_SUPPORTED) return audio.load(); // a place it cannot go to
    byId("no-audio").hidden = false;
    byId("no-audio").textContent = `The sound file cannot be played: ${chosen.link ?? chosen.id}`;
  }

  function lookPlaying() {
    if (!chosen) return;
    byId("play").classList.toggle("playing", !audio.paused);
    byId("play").setAttribute("aria-label", audio.paused ? "Play" : "Pause");
    tick();
  }

  for (const event of ["play", "pause", "ended", "emptied"]) audio.addEventListener(event, lookPlaying);
  audio.addEventListener("seeked", () => tick());
  audio.addEventListener("error", () => audio.hasAttribute("src") && failed());
  byId("play").addEventListener("click", toggle);
  byId("speed").addEventListener("change", () => {
    audio.playbackRate = Number(byId("speed").value);
  });
  addEventListener("resize", () => chosen && fitNames());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => waveform?.setOptions(colors()));

  function seekTo(event) {
    const box = stage.getBoundingClientRect();
    seek((chosen.seconds * (event.clientX - box.left)) / box.width);
  }
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    seekTo(event);
  });
  stage.addEventListener("pointermove", (event) => event.buttons && seekTo(event));

  function step(by) {
    const index = shown.indexOf(chosen);
    const next = shown[index < 0 ? 0 : index + by];
    if (!next) return;
    show(next);
    if (body.contains(document.activeElement)) next.row.querySelector("a").focus();
  }

  const KEYS = {
    " ": toggle,
    ArrowLeft: () => seek(audio.currentTime - STEP),
    ArrowRight: () => seek(audio.currentTime + STEP),
    ArrowUp: () => step(-1),
    ArrowDown: () => step(1),
    Home: () => seek(0),
    End: () => seek(chosen.seconds),
  };
  addEventListener("keydown", (event) => {
    const act = KEYS[event.key];
    const edited = event.target.closest("input, select");
    const presses = event.key === " " && event.target.closest("button:not(.word), summary");
    const scrolls = event.target.closest("#results, footer") || (/Home|End/.test(event.key) && event.target !== stage);
    if (!act || !chosen || edited || presses || scrolls || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });

  // --- the summary

  function makeSummary({ seconds, moments }) {
    const isOne = seconds.length === 1;
    const head = make("tr", {}, ...(isOne ? [] : [make("td")]));
    data.emotions.forEach(({ name }, index) =>
      head.append(make("th", { scope: "col", class: "number" }, swatch(index), name)),
    );
    const rows = seconds.map(([speaker, each]) => {
      const total = each.reduce((a, b) => a + b, 0);
      const cells = each.map((value) => {
        const share = make("small", {}, percent(total && value / total));
        return make("td", { class: "number" }, lasting(value), " ", share);
      });
      return make("tr", {}, ...(isOne ? [] : [make("th", { scope: "row" }, speaker)]), ...cells);
    });
    const table = byId("summary").querySelector("table");
    table.append(make("thead", {}, head), make("tbody", {}, ...rows));
    const items = moments.map(({ id, start, emotion, probability, text }) => {
      const felt = make("span", {}, swatch(emotion), `${nameOf(emotion)} ${percent(probability)}`);
      const place = make("span", { class: "place" }, ...breakable(id), ` at ${lasting(start)}`);
      const button = make("button", { type: "button" }, felt, " ", place);
      if (text) button.append(" ", make("q", {}, text));
      button.addEventListener("click", () => {
        show(utterances.find((utterance) => utterance.id === id), { scroll: true });
        seek(start);
        audio.play().catch(failed);
      });
      return make("li", {}, button);
    });
    byId("moments").replaceChildren(...(items.length ? items : [make("li", {}, "None: all is neutral.")]));
    byId("moments-note").hidden = !items.length;
    byId("summary").hidden = false;
  }

  const addressed = () => utterances.find(({ address }) => address === location.hash);
  if (utterances.length) {
    makeList();
    if (data.summary) makeSummary(data.summary);
    const isAlone = utterances.length < 2;
    list.hidden = byId("choose-key").hidden = isAlone;
    byId("utterance-title").hidden = isAlone && utterances[0].id === document.querySelector("h1").textContent;
    show(addressed() ?? shown[0]);
    addEventListener("hashchange", () => addressed() && show(addressed()));
  }
})();
