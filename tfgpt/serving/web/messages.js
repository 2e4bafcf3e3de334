// Draws a conversation. People's text is put in as text; the model's is Markdown, made safe by DOMPurify.
const CLEAN = {
  // Pictures would tell other sites who reads; the rest has no business in an answer.
  FORBID_TAGS: ["img", "picture", "video", "audio", "source", "svg", "math", "style", "form", "input", "button", "textarea", "select"],
  FORBID_ATTR: ["style", "id", "class", "name"],
  ALLOW_DATA_ATTR: false,
};

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
  }
});

function rendered(text) {
  return DOMPurify.sanitize(marked.parse(text, { gfm: true, breaks: true }), { ...CLEAN, RETURN_DOM_FRAGMENT: true });
}

function button(label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.onclick = action;
  return made;
}

function editor(article, message, index, { say, edit }) {
  const area = document.createElement("textarea");
  area.value = message.content;
  area.rows = Math.min(10, message.content.split("\n").length + 1);
  area.setAttribute("aria-label", say("edit"));
  const tools = document.createElement("div");
  tools.className = "tools";
  const before = [...article.childNodes];
  tools.append(button(say("save"), () => edit(index, area.value)), button(say("cancel"), () => article.replaceChildren(...before)));
  article.replaceChildren(area, tools);
  area.focus();
}

function drawn(message, index, last, options) {
  const { say, busy, regenerate, status } = options;
  const article = document.createElement("article");
  article.className = message.role;
  const heading = document.createElement("h2");
  heading.textContent = say(message.role === "user" ? "you" : "assistant");
  const content = document.createElement("div");
  content.className = "content";
  content.dir = "auto";
  if (message.role === "user") content.textContent = message.content;
  else content.append(rendered(message.content));
  article.append(heading, content);
  const writing = busy && last;
  const note = message.error || (message.note && !writing ? say(message.note) : "");
  if (note) {
    const line = document.createElement("p");
    line.className = message.error || message.note === "lost" ? "wrong" : "note";
    line.textContent = note;
    article.append(line);
  }
  const tools = document.createElement("div");
  tools.className = "tools";
  if (!busy && message.role === "user") tools.append(button(say("edit"), () => editor(article, message, index, options)));
  if (!busy && message.role === "assistant") {
    tools.append(button(say("regenerate"), () => regenerate(index)));
    if (message.content && navigator.clipboard) { // Browsers have it on https and on this machine only.
      tools.append(button(say("copy"), async () => {
        await navigator.clipboard.writeText(message.content);
        status(say("copied"));
      }));
    }
  }
  if (message.usage) {
    const count = document.createElement("span");
    count.className = "note";
    count.textContent = say("tokens", message.usage.prompt_tokens, message.usage.completion_tokens);
    tools.append(count);
  }
  if (tools.childNodes.length) article.append(tools);
  return article;
}

// Draws all of a conversation, or only what changes while an answer comes: its last message.
export function show(log, conversation, options) {
  const messages = conversation?.messages ?? [];
  if (!messages.length) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = options.say("empty");
    log.replaceChildren(empty);
    return;
  }
  const last = messages.length - 1;
  if (options.busy && log.dataset.shown === `${conversation.id} ${messages.length}`) {
    log.lastElementChild.replaceWith(drawn(messages[last], last, true, options));
    return;
  }
  log.replaceChildren(...messages.map((message, index) => drawn(message, index, index === last, options)));
  log.dataset.shown = options.busy ? `${conversation.id} ${messages.length}` : "";
}
