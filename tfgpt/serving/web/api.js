// Talks to the server that this page came from.

export class ApiError extends Error {
  constructor(status, content, retryAfter) {
    super(content?.error?.message ?? `HTTP ${status}`);
    this.status = status;
    this.code = content?.error?.code ?? "";
    this.retryAfter = retryAfter;
  }
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function refused(response) {
  let content = null;
  try { content = await response.json(); } catch { /* A proxy's page, say: the status has to do. */ }
  return new ApiError(response.status, content, response.headers.get("Retry-After") ?? "1");
}

export async function models(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  if (!response.ok) throw await refused(response);
  return (await response.json()).data;
}

// Yields {text}, {reason} and {usage} as they come; throws when the stream ends without its last event.
export async function* chat(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", headers: headers(key), signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new TypeError("the stream ended too early");
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const content = JSON.parse(data);
      if (content.error) throw new ApiError(503, content, "2");
      if (content.usage) yield { usage: content.usage };
      for (const choice of content.choices) {
        if (choice.delta.content) yield { text: choice.delta.content };
        if (choice.finish_reason) yield { reason: choice.finish_reason };
      }
    }
  }
}
