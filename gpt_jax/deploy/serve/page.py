"""The page at /: a chat with the run, in one file without a framework."""

from gpt_jax import theme

# The page loads nothing from other hosts. (Its script inserts the model's text
# as text, never as HTML.)
PAGE_RULES = {
  "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
  "script-src 'unsafe-inline'; connect-src 'self'",
  "x-content-type-options": "nosniff",
}
_STYLE = """
body { height: 100dvh; max-width: 46rem; padding: 0 1rem; display: flex;
  flex-direction: column; }
header { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center;
  padding: .75rem 0; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.1rem; margin: 0; flex: 1; }
label { font-size: .875rem; }
input[type=number] { width: 5rem; }
main { flex: 1; overflow-y: auto; padding: 1rem 0; }
main p { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .75rem;
  padding: .5rem .75rem; border-radius: .5rem; }
.user { margin-left: 15%;
  background: color-mix(in srgb, var(--mark) 14%, transparent); }
.assistant { border: 1px solid var(--line); margin-right: 15%; }
.error { border: 1px solid var(--bad); }
form { display: flex; gap: .5rem; padding: .75rem 0; }
textarea { flex: 1; padding: .5rem; resize: none; }
button, input { padding: .25rem .5rem; }
button, input, textarea { font: inherit; color: inherit; border-radius: .25rem;
  background: var(--stripe); border: 1px solid var(--soft); }
::placeholder { color: var(--soft); opacity: 1; }
@media (max-width: 34rem) {
  h1 { flex: 1 0 50%; }
  label { order: 1; flex: 1 0 25%; }
  label input, input[type=number] { display: block; width: 100%; }
}
:focus-visible { outline: 2px solid var(--mark); outline-offset: 1px; }
"""

_BODY = """<header>
  <h1 id="name">gpt_jax</h1>
  <label>temperature
    <input id="temperature" type="number" min="0" max="2" step="0.1"
      value="0.8">
  </label>
  <label>tokens
    <input id="tokens" type="number" min="1" value="200"></label>
  <label>key
    <input id="key" type="password" autocomplete="off" size="8"></label>
  <button id="anew" type="button">New chat</button>
</header>
<main id="talk" aria-live="polite"></main>
<form id="form">
  <textarea id="text" rows="2" aria-label="Message"
    placeholder="Message; Enter sends, Shift+Enter breaks the line"></textarea>
  <button id="send">Send</button>
</form>"""

_SCRIPT = """
const $ = id => document.getElementById(id);
let messages = [], leaving = null;
const head = () => ({"content-type": "application/json",
  ...($("key").value ? {authorization: "Bearer " + $("key").value} : {})});
const show = (role, text) => {
  const p = document.createElement("p");
  p.className = role; p.textContent = text;
  $("talk").append(p); p.scrollIntoView(); return p;
};
fetch("/v1/models", {headers: head()}).then(r => r.json())
  .then(m => { $("name").textContent = m.data[0].id; }).catch(() => {});
$("anew").onclick = () => {
  if (leaving) leaving.abort();
  messages = []; $("talk").replaceChildren(); $("text").focus();
};
$("text").onkeydown = e => {
  if (e.key === "Enter" && !e.shiftKey && !e.isComposing) {
    e.preventDefault(); $("form").requestSubmit();
  }
};
$("form").onsubmit = async e => {
  e.preventDefault();
  if (leaving) { leaving.abort(); return; }
  const text = $("text").value.trim();
  if (!text) return;
  $("text").value = "";
  messages.push({role: "user", content: text});
  show("user", text);
  const own = messages, p = show("assistant", "");
  leaving = new AbortController();
  $("send").textContent = "Stop";
  try {
    const answer = await fetch("/v1/chat/completions", {
      method: "POST", headers: head(), signal: leaving.signal,
      body: JSON.stringify({messages, stream: true,
        temperature: +$("temperature").value,
        max_tokens: +$("tokens").value})});
    if (!answer.ok) throw Error((await answer.json()).error.message);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const {done, value} = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\\n\\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") continue;
        const part = JSON.parse(line.slice(6));
        if (part.error) throw Error(part.error.message);
        p.textContent += part.choices[0]?.delta?.content ?? "";
      }
      p.scrollIntoView({block: "end"});
    }
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  }
  if (p.textContent.trim()) {
    own.push({role: "assistant", content: p.textContent});
  } else { own.pop(); p.remove(); }
  leaving = null; $("send").textContent = "Send";
};
$("text").focus();
"""

PAGE = theme.page("gpt_jax", _BODY, _STYLE, _SCRIPT)
