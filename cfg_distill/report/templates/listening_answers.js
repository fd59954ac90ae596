"use strict";
// One page, no network. The items and clips stand in #data; the answers in localStorage and in the file that is downloaded.
const FORMAT = "cfg-distill ratings";
const VERSION = 1;
const data = JSON.parse(document.getElementById("data").textContent);
const items = new Map(data.items.map((item) => [item.id, item]));
const isSound = data.kind === "sound";
const thing = isSound ? "clip" : "text";
const SCALES = [
  { key: "quality", question: `How good is this ${thing}?`, words: ["bad", "poor", "fair", "good", "excellent"] },
  {
    key: "adherence",
    question: "How well does it fit the prompt?",
    words: ["not at all", "a little", "partly", "mostly", "fully"],
  },
];
const INTRO = "variety";
const screen = document.getElementById("screen");

let session = null; // who rates, and the answers so far
let steps = []; // ids of items in this rater's order, and INTRO before the second kind
let place = 0;
let shown = null; // what the keyboard acts on: {players, choose, next, back}
let since = 0; // when the item came on the screen
let canStore = true;
let downloaded = true; // whether a file holds every answer

// Elements

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name === "className" ? "class" : name, value);
  }
  element.append(...children);
  return element;
}

function show(...children) {
  if (shown) shown.players.forEach((player) => player.stop());
  shown = null;
  screen.replaceChildren(...children);
  window.scrollTo(0, 0);
  screen.focus({ preventScroll: true });
}

const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
const minutes = (seconds) => (seconds < 90 ? "about a minute" : `about ${Math.round(seconds / 60)} minutes`);
const say = (text) => (document.getElementById("live").textContent = text);

// The order of a rater: shuffled by the name, so that no two raters hear the same clips first, and each goes on in one order

function hash(text) {
  let value = 0x811c9dc5; // FNV-1a, then the final mix of MurmurHash3
  for (const letter of text) value = Math.imul(value ^ letter.codePointAt(0), 0x01000193);
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return (value ^ (value >>> 16)) >>> 0;
}

const nameOf = (rater) => rater.trim().toLowerCase().replace(/\s+/g, " ");
const chance = (rater, id) => hash(`${data.page} ${nameOf(rater)} ${id}`);

function orderOf(rater) {
  const sorted = (kind) =>
    data.items
      .filter((item) => item.kind === kind)
      .map((item) => [chance(rater, item.id), item.id])
      .sort((one, other) => one[0] - other[0] || (one[1] < other[1] ? -1 : 1))
      .map((pair) => pair[1]);
  const second = sorted("variety");
  return [...sorted("quality"), ...(second.length ? [INTRO, ...second] : [])];
}

const groupsOf = (item, rater) => (chance(rater, item.id) & 1 ? [...item.groups].reverse() : item.groups);
const clipsOf = (item) => (item.kind === "quality" ? item.clips : item.groups.flatMap((group) => group.clips));
const audible = (clip) => isSound && data.clips[clip].seconds > 0;

// Answers

function answerOf(id) {
  return (session.answers[id] ??= { heard: [], plays: 0, seconds: 0 });
}

function missing(item) {
  const answer = session.answers[item.id] ?? { heard: [] };
  const unheard = clipsOf(item).filter((clip) => audible(clip) && !answer.heard.includes(clip));
  if (unheard.length && item.kind === "quality") return "Play the clip first.";
  if (unheard.length) return `Play ${count(unheard.length, "more clip")} first.`;
  if (item.kind === "variety") return answer.more ? "" : "Choose one of the three.";
  const open = SCALES.filter((scale) => !answer[scale.key]);
  if (open.length === 2) return "Give both scores.";
  return open.length ? `Score missing: ${open[0].question}` : "";
}

const isDone = (id) => id !== INTRO && missing(items.get(id)) === "";
const doneOf = (answers) => Object.keys(answers).filter((id) => items.has(id));

function keyOf(rater) {
  return `cfg-distill ${data.page} ${nameOf(rater)}`;
}

function save() {
  session.saved = new Date().toISOString();
  downloaded = false;
  try {
    localStorage.setItem(keyOf(session.rater), JSON.stringify(session));
  } catch {
    canStore = false;
  }
}

function savedSessions() {
  try {
    return Object.keys(localStorage)
      .filter((key) => key.startsWith(`cfg-distill ${data.page} `))
      .map((key) => JSON.parse(localStorage.getItem(key)));
  } catch {
    canStore = false;
    return [];
  }
}

function spend() {
  if (!shown || !shown.item) return;
  const now = performance.now();
  // A break is no rating time: an item counts five minutes at most for each visit.
  answerOf(shown.item.id).seconds += Math.min((now - since) / 1000, 300);
  since = now;
}

function result() {
  const done = doneOf(session.answers).filter(isDone);
  const answers = Object.fromEntries(
    done.map((id) => {
      const { heard, seconds, ...answer } = session.answers[id];
      return [id, { ...answer, heard: heard.length, seconds: Math.round(seconds * 10) / 10 }];
    })
  );
  const finished = done.length === items.size;
  return {
    format: FORMAT,
    version: VERSION,
    page: data.page,
    rater: session.rater,
    started: session.started,
    saved: session.saved,
    items: items.size,
    finished,
    answers,
  };
}

function download() {
  spend();
  save();
  const name = nameOf(session.rater).replace(/[^\p{L}\p{N}]+/gu, "-") || "rater";
  const file = new Blob([JSON.stringify(result(), null, 1) + "\n"], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(file), download: `ratings-${data.page}-${name}.json` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  downloaded = true;
}

/** A file that this page wrote, as a session; an error's message says why it is none. */
function sessionOf(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON. Choose the file that you downloaded from this page.");
  }
  if (!file || file.format !== FORMAT || file.version !== VERSION || typeof file.rater !== "string" || !file.answers)
    throw new Error("This file holds no ratings. Choose the file that you downloaded from this page.");
  if (file.page !== data.page) throw new Error("This file belongs to another page. Open it there.");
  const answers = {};
  for (const id of doneOf(file.answers)) {
    // What counts as heard comes back as a number: a finished item was heard whole.
    answers[id] = { ...file.answers[id], heard: clipsOf(items.get(id)) };
  }
  return { rater: file.rater, started: file.started, saved: file.saved, answers };
}

function begin(next) {
  const stored = savedSessions().find((each) => nameOf(each.rater) === nameOf(next.rater));
  // Of two answers to one item the later one counts.
  for (const [id, answer] of Object.entries(stored?.answers ?? {}))
    if (!next.answers[id]?.at || (answer.at ?? "") > next.answers[id].at) next.answers[id] = answer;
  session = { ...next, started: stored?.started ?? next.started };
  steps = orderOf(session.rater);
  save();
  const open = steps.findIndex((id) => id !== INTRO && !isDone(id));
  place = open < 0 ? steps.length : steps[open - 1] === INTRO ? open - 1 : open;
  showStep();
}
