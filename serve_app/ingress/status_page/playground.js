// The playground: a streamed chat over /v1/chat/completions. What the model says is written as text, never as HTML.

import { apiKey, askForKey, byId, headers, make } from "/status/page/status.js";

const MAX_IMAGE_BYTES = 20 * 1024 * 1024;
const TOOL = {
  type: "function",
  function: {
    name: "get_weather", description: "The weather in a city at present.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const TOOL_RESULT = '{"temperature_c": 18, "sky": "cloudy"}';

let messages = [];
let running = null;
let model = null;

// ---- the request ----------------------------------------------------------------------------------------------------

async function modelName() {
  if (model) return model;
  const answer = await fetch("/v1/models", { headers: headers() });
  if (!answer.ok) throw await refusal(answer);
  model = (await answer.json()).data[0].id;
  return model;
}

async function body(asked) {
  return {
    model: await modelName(), messages: asked, stream: true, stream_options: { include_usage: true },
    reasoning_effort: byId("effort").value, max_tokens: Math.max(1, Number(byId("max-tokens").value) || 1024),
    ...(byId("tool").checked ? { tools: [TOOL] } : {}),
  };
}

async function userMessage() {
  const text = byId("prompt").value.trim();
  const [image] = byId("image").files;
  if (!image) return text ? { role: "user", content: text } : null;
  if (image.size > MAX_IMAGE_BYTES) throw new Error("The image is larger than 20 MB.");
  const parts = [{ type: "image_url", image_url: { url: await dataUrl(image) } }];
  return { role: "user", content: text ? [...parts, { type: "text", text }] : parts };
}

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error("The image cannot be read."));
  reader.readAsDataURL(file);
});

async function refusal(answer) {
  if (answer.status === 401) askForKey(apiKey() ? "The service does not know this key." : "This service asks for a key.");
  let text = `status ${answer.status}`;
  try {
    text = (await answer.json()).error.message || text;
  } catch { /* no JSON: the status must do */ }
  return new Error(text);
}

/** The events of a stream, and its comments as `{comment}`. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith(": ")) yield { comment: line.slice(2) };
      else if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

// ---- what is shown --------------------------------------------------------------------------------------------------

const say = (text) => { byId("chat-status").textContent = text; };

function append(kind, who, ...children) {
  const message = make("div", { class: `message ${kind}` }, make("span", { class: "who" }, who), ...children);
  byId("log").append(message);
  follow();
  return message;
}

function follow() {
  const log = byId("log");
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 200) log.scrollTop = log.scrollHeight;
}

function showUser(message) {
  const parts = typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
  append("user", "You", ...parts.map((part) => part.type === "text"
    ? make("p", { class: "text" }, part.text) : make("img", { src: part.image_url.url, alt: "The image that you sent" })));
  byId("log").scrollTop = byId("log").scrollHeight;
}

/** An answer as it comes: reasoning folded away, text, calls of tools. */
class Answer {
  constructor() {
    this.text = make("p", { class: "text" });
    this.reasoning = make("p", { class: "text" });
    this.folded = make("details", {}, make("summary", {}, "Reasoning"), this.reasoning);
    this.folded.hidden = true;
    this.element = append("assistant", "Model", this.folded, this.text);
    this.calls = [];
    this.usage = null;
    this.timing = "";
    this.finish = null;
  }

  take(event) {
    if (event.comment !== undefined) {
      if (event.comment.startsWith("server-timing ")) this.timing = event.comment.slice("server-timing ".length);
      return;
    }
    if (event.error) throw new Error(event.error.message || "The stream has failed.");
    this.usage = event.usage || this.usage;
    const [choice] = event.choices || [];
    if (!choice) return;
    this.finish = choice.finish_reason || this.finish;
    const delta = choice.delta || {};
    const thought = delta.reasoning ?? delta.reasoning_content;
    if (thought) {
      this.folded.hidden = false;
      this.reasoning.append(thought);
    }
    if (delta.content) this.text.append(delta.content);
    for (const part of delta.tool_calls || []) this.takeCall(part);
    follow();
  }

  takeCall(part) {
    const call = (this.calls[part.index] ||= { id: "", name: "", arguments: "", code: null });
    call.id ||= part.id || "";
    call.name += part.function?.name || "";
    call.arguments += part.function?.arguments || "";
    if (!call.code) {
      call.code = make("code", {});
      this.element.append(make("div", { class: "call" }, make("span", { class: "who" }, "Call of a tool"), call.code));
    }
    call.code.textContent = `${call.name}(${call.arguments})`;
  }

  fail(text) {
    this.element.append(make("p", { class: "failed", role: "alert" }, text));
  }

  message() {
    const calls = this.calls.filter(Boolean);
    return {
      role: "assistant", content: this.text.textContent,
      ...(calls.length ? { tool_calls: calls.map((one) => ({ id: one.id, type: "function", function: { name: one.name, arguments: one.arguments } })) } : {}),
    };
  }
}

function askForResults(answer) {
  const calls = answer.calls.filter(Boolean);
  if (!calls.length) return;
  const fields = calls.map((call, index) => {
    const id = `result-${messages.length}-${index}`;
    const field = make("textarea", { id, rows: "2" });
    field.value = TOOL_RESULT;
    return { call, field, label: make("label", { for: id }, `Result of ${call.name}`) };
  });
  const send = make("button", { type: "submit" }, "Send the result");
  const form = make("form", { class: "call" }, ...fields.flatMap(({ label, field }) => [label, field]), send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    form.querySelectorAll("textarea, button").forEach((one) => { one.disabled = true; });
    messages.push(...fields.map(({ call, field }) => ({ role: "tool", tool_call_id: call.id, content: field.value })));
    complete();
  });
  answer.element.append(form);
}

function ended(answer, seconds) {
  const tokens = answer.usage ? `${answer.usage.completion_tokens} tokens in ` : "";
  const why = answer.finish === "length" ? ", cut at the most tokens" : "";
  const parts = [...answer.timing.matchAll(/(\w+);dur=([\d.]+)/g)].filter(([, name, ms]) => name !== "total" && ms >= 1);
  const timing = parts.length ? ` (${parts.map(([, name, ms]) => `${name.replaceAll("_", " ")} ${Math.round(ms)} ms`).join(", ")})` : "";
  return `Done: ${tokens}${seconds.toFixed(1)} s${why}${timing}.`;
}

// ---- the course of a turn -------------------------------------------------------------------------------------------

function setRunning(controller) {
  running = controller;
  byId("send").disabled = Boolean(controller);
  byId("stop").disabled = !controller;
  byId("log").setAttribute("aria-busy", Boolean(controller));
}

async function complete() {
  const turn = messages; // "New conversation" begins another list while this one may still run
  const controller = new AbortController();
  const answer = new Answer();
  const began = performance.now();
  setRunning(controller);
  say("Answering ...");
  try {
    const asked = { "content-type": "application/json", "x-step-debug": "timing" };
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(asked), body: JSON.stringify(await body(turn)), signal: controller.signal,
    });
    if (!response.ok) throw await refusal(response);
    for await (const event of events(response.body)) answer.take(event);
    turn.push(answer.message());
    if (turn === messages) askForResults(answer);
    say(ended(answer, (performance.now() - began) / 1000));
  } catch (error) {
    if (controller.signal.aborted) {
      if (turn === messages) say("Stopped.");
      if (answer.text.textContent) turn.push({ role: "assistant", content: answer.text.textContent });
    } else {
      answer.fail(error.message);
      say("It has failed.");
    }
  }
  if (running === controller) setRunning(null);
  showCurl();
}

async function send(event) {
  event.preventDefault();
  if (running) return;
  try {
    const message = await userMessage();
    if (!message) {
      say("Write a message first.");
      byId("prompt").focus();
      return;
    }
    messages.push(message);
    showUser(message);
  } catch (error) {
    say(error.message);
    return;
  }
  byId("prompt").value = "";
  byId("image").value = "";
  await complete();
}

// ---- as curl --------------------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

async function showCurl() {
  if (byId("curl").hidden) return;
  try {
    // What is written and not sent yet is the request; without it, the last one.
    const drafted = await userMessage();
    const last = messages.findLastIndex((one) => one.role !== "assistant") + 1;
    const sent = drafted ? [...messages, drafted] : messages.slice(0, last);
    const asked = await body(sent.length ? sent : [{ role: "user", content: "Hello" }]);
    const key = apiKey() ? '  -H "authorization: Bearer $STEP_API_KEY" \\\n' : "";
    byId("curl-text").textContent = `curl -N ${quoted(`${location.origin}/v1/chat/completions`)} \\\n${key}  -H 'content-type: application/json' \\\n  -d ${quoted(JSON.stringify(asked, null, 1))}`;
  } catch (error) {
    byId("curl-text").textContent = error.message;
  }
}

async function copy() {
  const text = byId("curl-text");
  try {
    await navigator.clipboard.writeText(text.textContent);
  } catch { // not on plain http: then the old way
    getSelection().selectAllChildren(text);
    document.execCommand("copy");
  }
  byId("copied").textContent = "Copied.";
  setTimeout(() => { byId("copied").textContent = ""; }, 3000);
}

byId("chat").addEventListener("submit", send);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("chat").requestSubmit();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("clear").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("log").replaceChildren();
  say("");
  showCurl();
  byId("prompt").focus();
});
byId("as-curl").addEventListener("click", () => {
  const hidden = !byId("curl").hidden;
  byId("curl").hidden = hidden;
  byId("as-curl").setAttribute("aria-expanded", !hidden);
  showCurl();
});
for (const id of ["prompt", "effort", "max-tokens", "image", "tool"]) byId(id).addEventListener("input", showCurl);
byId("copy").addEventListener("click", copy);
