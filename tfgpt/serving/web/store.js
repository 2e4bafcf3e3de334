// Conversations and settings in this browser's storage; the API key only until the tab is closed.
const CONVERSATIONS = "tfgpt.conversations";
const SETTINGS = "tfgpt.settings";
const KEY = "tfgpt.key";

function read(name, otherwise) {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
}

// A conversation: {id, title, messages: [{role, content, usage?, note?}]}; the newest comes first.
export const conversations = read(CONVERSATIONS, []).filter((one) => one && Array.isArray(one.messages));
export const settings = read(SETTINGS, {});

// Says whether there was room.
export function save() {
  try {
    localStorage.setItem(CONVERSATIONS, JSON.stringify(conversations));
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
    return true;
  } catch { return false; }
}

export function key() { return sessionStorage.getItem(KEY) ?? ""; }
export function setKey(value) { sessionStorage.setItem(KEY, value); }
