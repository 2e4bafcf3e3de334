import { ApiError, chat, models } from "./api.js";
import { show } from "./messages.js";
import { conversations, key, save, setKey, settings } from "./store.js";
import { TEXTS } from "./texts.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
// While an answer comes it is stored this often, so that a reload loses little; milliseconds.
const SAVE_EVERY = 500;

let current = conversations[0] ?? null;
let known = [];
let running = null; // {abort, conversation} while an answer comes.

function say(name, ...values) {
  const text = TEXTS[settings.language][name] ?? name;
  return values.reduce((all, value, index) => all.replace(`{${index}}`, value), text);
}

function status(text) { $("status").textContent = text; }

function keep() { if (!save()) status(say("full")); }

function drawTexts() {
  document.documentElement.lang = settings.language === "zh" ? "zh-CN" : "en";
  document.documentElement.dataset.theme = settings.theme;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = say(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
    if (element.tagName === "BUTTON") element.title = say(element.dataset.label);
  }
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = say(element.dataset.placeholder);
  // There are no such keys on a phone, and little room.
  if (matchMedia("(pointer: coarse)").matches) document.querySelector("#entry").placeholder = say("placeholderTouch");
  $("theme").setAttribute("aria-pressed", String(settings.theme === "dark"));
  draw();
}

function drawList() {
  $("list").replaceChildren(...conversations.map((one) => {
    const item = document.createElement("li");
    const open = document.createElement("button");
    open.type = "button";
    open.className = "open";
    open.textContent = one.title || say("untitled");
    if (one === current) open.setAttribute("aria-current", "true");
    open.onclick = () => { select(one); };
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "delete";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `${say("remove")}: ${open.textContent}`);
    remove.onclick = () => {
      if (running?.conversation === one) running.abort.abort();
      conversations.splice(conversations.indexOf(one), 1);
      keep();
      if (one === current) select(conversations[0] ?? null); else drawList();
      $("new").focus();
    };
    item.append(open, remove);
    return item;
  }));
}

function drawCount() {
  const last = current?.messages.findLast((message) => message.usage);
  const model = known.find((one) => one.id === $("model").value);
  $("count").textContent = !last ? "" : model?.context_length
    ? say("context", last.usage.total_tokens, model.context_length) : say("tokens", last.usage.prompt_tokens, last.usage.completion_tokens);
}

function draw() {
  const busy = running !== null;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("log").setAttribute("aria-busy", String(busy));
  show($("log"), current, { say, busy, edit, regenerate, status });
  drawList();
  drawCount();
}

function scroll() { $("log").scrollTop = $("log").scrollHeight; }

function select(conversation) {
  current = conversation;
  status("");
  sideShown(false);
  draw();
  scroll();
}

function sideShown(shown) {
  $("side").classList.toggle("shown", shown);
  $("show-list").setAttribute("aria-expanded", String(shown));
}

function requestBody(messages) {
  const body = { model: $("model").value, messages: messages.map(({ role, content }) => ({ role, content })) };
  if (settings.system) body.messages.unshift({ role: "system", content: settings.system });
  for (const name of NUMBERS) if (Number.isFinite(settings[name])) body[name] = settings[name];
  return body;
}

function explained(error) {
  if (!(error instanceof ApiError)) return say("away");
  if (error.status === 401) return say("wrongKey");
  if (error.status === 429) return say("busy", error.retryAfter);
  if (error.code === "context_length_exceeded") return say("tooLong");
  return error.message;
}

async function answer(conversation) {
  if (running) return;
  running = { abort: new AbortController(), conversation };
  const body = requestBody(conversation.messages);
  const message = { role: "assistant", content: "", note: "unfinished" };
  conversation.messages.push(message);
  keep();
  draw();
  scroll();
  status(say("writing"));
  let drawn = 0, saved = performance.now(), ended = "";
  const soon = () => {
    drawn ||= requestAnimationFrame(() => {
      drawn = 0;
      const log = $("log");
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      if (current === conversation) show(log, current, { say, busy: running !== null, edit, regenerate, status });
      if (below) scroll();
    });
  };
  try {
    for await (const part of chat(body, key(), running.abort.signal)) {
      if (part.text) message.content += part.text;
      if (part.usage) message.usage = part.usage;
      if (part.reason) message.note = part.reason === "length" ? "cut" : "";
      if (performance.now() - saved > SAVE_EVERY) {
        keep();
        saved = performance.now();
      }
      soon();
    }
    ended = say("done");
  } catch (error) {
    if (error.name === "AbortError") {
      message.note = "stopped";
      ended = say("stopped");
    } else if (message.content) {
      message.note = "lost";
      ended = say("lost");
    } else {
      message.error = explained(error);
      message.note = "";
      ended = message.error;
    }
  }
  cancelAnimationFrame(drawn); // A frame after the last draw would take the buttons away from under the hand.
  running = null;
  keep();
  draw();
  status(ended);
}

function send(text) {
  if (!text.trim() || running) return;
  if (!current) {
    current = { id: crypto.randomUUID?.() ?? String(Date.now()), title: text.trim().slice(0, 60), messages: [] };
    conversations.unshift(current);
  }
  // An answer that failed before its first word is no part of the conversation.
  current.messages = current.messages.filter((message) => !message.error);
  current.messages.push({ role: "user", content: text });
  answer(current);
}

function edit(index, text) {
  if (running || !text.trim()) return;
  current.messages.length = index;
  send(text);
}

function regenerate(index) {
  if (running) return;
  current.messages.length = index;
  answer(current);
}

async function loadModels() {
  try {
    known = await models(key());
    $("model").replaceChildren(...known.map((one) => new Option(one.id, one.id, false, one.id === settings.model)));
    const chosen = known.find((one) => one.id === $("model").value);
    for (const [name, value] of Object.entries(chosen?.defaults ?? {})) {
      const field = $(name === "max_new_tokens" ? "max_tokens" : name);
      if (field && name !== "seed") field.placeholder = +(+value).toFixed(4);
    }
    status("");
    drawCount();
  } catch (error) { status(explained(error)); }
}

function start() {
  settings.language = TEXTS[settings.language] ? settings.language : navigator.language.startsWith("zh") ? "zh" : "en";
  settings.theme ??= matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  $("language").value = settings.language;
  $("system").value = settings.system ?? "";
  $("key").value = key();
  for (const name of NUMBERS) $(name).value = settings[name] ?? "";

  $("composer").onsubmit = (event) => {
    event.preventDefault();
    const text = $("entry").value;
    if (!text.trim() || running) return;
    $("entry").value = "";
    send(text);
  };
  $("entry").onkeydown = (event) => {
    // Not while an input method (Chinese, say) still composes: its Enter takes the word.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("composer").requestSubmit();
    }
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    sideShown(false);
    running?.abort.abort();
  });
  $("stop").onclick = () => { running?.abort.abort(); $("entry").focus(); };
  $("new").onclick = () => { select(null); $("entry").focus(); };
  $("show-list").onclick = () => sideShown(!$("side").classList.contains("shown"));
  $("show-settings").onclick = () => {
    $("settings").hidden = !$("settings").hidden;
    $("show-settings").setAttribute("aria-expanded", String(!$("settings").hidden));
  };
  $("settings").onsubmit = (event) => event.preventDefault();
  $("settings").onchange = (event) => {
    const field = event.target;
    if (field.id === "key") { setKey(field.value.trim()); loadModels(); return; }
    if (!field.reportValidity()) return;
    if (field.id === "system") settings.system = field.value;
    else settings[field.id] = field.value === "" ? null : Number(field.value);
    keep();
  };
  $("model").onchange = () => { settings.model = $("model").value; keep(); drawCount(); };
  $("language").onchange = () => { settings.language = $("language").value; keep(); drawTexts(); };
  $("theme").onclick = () => { settings.theme = settings.theme === "dark" ? "light" : "dark"; keep(); drawTexts(); };
  drawTexts();
  scroll();
  loadModels();
}

start();
