// The chat page. Everything a model says reaches the page as text, never as HTML.

const $ = (id) => document.getElementById(id);
const history = []; // {role, content}, without the system prompt and without thinking
let model = null;
let running = null; // AbortController of the answer that streams now

$("key").value = sessionStorage.getItem("key") ?? "";

function headers() {
  const key = $("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function fault(response) {
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? `the server answered ${response.status}`);
}

async function loadModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  $("key-form").hidden = response.status !== 401;
  if (response.status === 401) throw new Error("enter the API key above and send again");
  if (!response.ok) throw await fault(response);
  model = (await response.json()).data[0].id;
  $("model").textContent = document.title = model;
}

// Drafts of the MTP layers so far, [{offered, accepted}] by layer. They count all requests.
async function readDrafts() {
  const response = await fetch("/metrics", { headers: headers() });
  if (!response.ok) return [];
  const drafts = [];
  const line = /^openmimo_mtp_drafts_(offered|accepted)_total\{layer="(\d+)"\} (\S+)$/gm;
  for (const [, what, layer, value] of (await response.text()).matchAll(line)) {
    drafts[layer] = { ...drafts[layer], [what]: Number(value) };
  }
  return drafts;
}

// Yields the objects of a stream of server-sent events.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function element(kind, className, parent, text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  parent.append(made);
  return made;
}

function addMessage(role) {
  return element("div", `message ${role}`, $("messages"));
}

// Follows the text unless the reader has scrolled up.
function scrolling(change) {
  const box = $("messages");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  change();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

class Answer {
  constructor() {
    this.box = addMessage("assistant");
    this.content = "";
    this.began = performance.now();
    this.first = null;
  }

  add(delta) {
    scrolling(() => {
      if (delta.reasoning_content || delta.content) this.first ??= performance.now();
      if (delta.reasoning_content) this.think(delta.reasoning_content);
      if (delta.content) this.say(delta.content);
    });
  }

  think(text) {
    if (!this.thinking) {
      this.thinking = element("details", "thinking", this.box);
      this.summary = element("summary", "", this.thinking, "Thinking …");
      this.thought = element("p", "", this.thinking);
    }
    this.thought.append(text);
  }

  say(text) {
    this.endThinking();
    this.paragraph ??= element("p", "", this.box);
    this.paragraph.append(text);
    this.content += text;
  }

  endThinking() {
    if (!this.thinking || this.thoughtEnded) return;
    this.thoughtEnded = true;
    const seconds = (performance.now() - this.began) / 1000;
    this.summary.textContent = `Thought for ${seconds.toFixed(1)} s`;
  }

  showFacts(usage, before, after, reason) {
    this.endThinking();
    const facts = [];
    if (usage) {
      const seconds = (this.last - (this.first ?? this.began)) / 1000;
      facts.push(`${usage.completion_tokens} tokens`);
      if (seconds > 0) facts.push(`${(usage.completion_tokens / seconds).toFixed(1)} tokens/s`);
    }
    const shares = after.flatMap((now, layer) => {
      const offered = now.offered - before[layer].offered;
      const accepted = now.accepted - before[layer].accepted;
      return offered ? [`${((100 * accepted) / offered).toFixed(0)} %`] : [];
    });
    if (shares.length) facts.push(`drafts accepted ${shares.join(" / ")}`);
    if (reason === "length") facts.push("cut at the token limit");
    if (reason === "stopped") facts.push("stopped");
    scrolling(() => element("div", "facts", this.box, facts.join(" · ")));
  }

  showFault(error) {
    this.endThinking();
    scrolling(() => element("div", "fault", this.box, `Error: ${error.message}`));
  }
}

function requestBody() {
  const system = { role: "system", content: $("system").value };
  const body = {
    model,
    messages: [system, ...history],
    temperature: Number($("temperature").value),
    top_p: Number($("top-p").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if ($("max-tokens").value) body.max_tokens = Number($("max-tokens").value);
  return JSON.stringify(body);
}

async function stream(answer) {
  if (!model) await loadModel();
  const before = await readDrafts();
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: requestBody(),
    signal: running.signal,
  });
  if (!response.ok) throw await fault(response);
  let usage = null;
  let reason = null;
  for await (const event of events(response)) {
    usage = event.usage ?? usage;
    const choice = event.choices[0];
    if (choice) answer.add(choice.delta);
    reason = choice?.finish_reason ?? reason;
    answer.last = performance.now();
  }
  answer.showFacts(usage, before, await readDrafts(), reason);
}

async function send(text) {
  running = new AbortController();
  showRunning(true);
  history.push({ role: "user", content: text });
  scrolling(() => element("p", "", addMessage("user"), text));
  $("messages").scrollTop = $("messages").scrollHeight;
  const answer = new Answer();
  try {
    await stream(answer);
  } catch (error) {
    if (running.signal.aborted) answer.showFacts(null, [], [], "stopped");
    else answer.showFault(error);
    if (!answer.content && !running.signal.aborted) {
      history.pop(); // nothing was answered: the message is there to be sent again
      $("text").value ||= text;
    }
  }
  if (history.at(-1)?.role === "user") {
    history.push({ role: "assistant", content: answer.content });
  }
  running = null;
  showRunning(false);
}

function showRunning(yes) {
  $("send").hidden = yes;
  $("stop").hidden = !yes;
  $("reset").disabled = yes;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  $("text").value = "";
  send(text);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", () => {
  history.length = 0;
  $("messages").replaceChildren();
  $("text").focus();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", $("key").value);
  loadModel().then(() => $("text").focus(), () => $("key").select());
});

loadModel().catch(() => {});
