"""Parses and checks the bodies of requests of OpenAI's API.

A field of that API which this server cannot honour is refused, unless it asks
for what happens anyway. So nothing that was asked for is silently ignored.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from gpt_jax.config import InputError
from gpt_jax.data.sources.chat import Message, check_turns, join_parts
from gpt_jax.deploy.serve.fields import (
  Fields,
  Refusal,
  is_number,
  is_unicode,
  show,
)
from gpt_jax.inference.drawing import NUM_LIKELIEST
from gpt_jax.inference.generation import Sampling

# Limits of one request.
MAX_CHOICES = 128
MAX_PROMPTS = 128
MAX_STOPS = 8
MAX_STOP_CHARS = 256
MAX_BIASES = 1024
# Largest `logprobs` of a completion, as in OpenAI's API.
MAX_LOG_PROBS = 5


class Asked(NamedTuple):
  """A request for texts.

  Attributes:
    prompts: texts, lists of ids, or one tuple of Messages.
    num_tokens: most tokens of a text; None: as many as the model has positions
      for.
    num_choices: number of texts for each prompt.
    sampling, seed, presence_penalty, frequency_penalty, bias: as in
      drawing.Settings; a seed of None is replaced by a random one.
    num_log_probs: number of likeliest tokens whose log-probabilities are
      returned beside each token's own; None: none are, nor its own.
    stop: strings that end a text.
    is_stream: whether the answer is streamed.
    has_usage: whether a stream's last event has the token counts.
    is_echo: whether a text, and its log-probabilities, begin with its prompt.
    schema: the JSON schema of the text; None for any text.
  """

  prompts: list
  num_tokens: int | None
  num_choices: int
  sampling: Sampling
  seed: int | None
  presence_penalty: float
  frequency_penalty: float
  bias: dict[int, float]
  num_log_probs: int | None
  stop: tuple[str, ...]
  is_stream: bool
  has_usage: bool
  is_echo: bool = False
  schema: dict | None = None


def read_completion(body: dict, vocab_size: int) -> Asked:
  """Returns the request in a body of /v1/completions; raises Refusal."""
  fields = Fields(body)
  prompts = _read_prompts(fields, vocab_size)
  n = fields.whole("n", 1, MAX_CHOICES, 1)
  fields.take("best_of", lambda x: x == n, "n, or left out", None)
  asked = Asked(
    prompts=prompts,
    num_tokens=fields.whole("max_tokens", 0, 2**31 - 1, 16),
    num_choices=n,
    num_log_probs=fields.whole("logprobs", 0, MAX_LOG_PROBS, None),
    is_echo=fields.switch("echo"),
    **_read_shared(fields, vocab_size),
  )
  fields.finish()
  return asked


def read_chat(body: dict, vocab_size: int) -> Asked:
  """Returns the request in a body of /v1/chat/completions; raises Refusal."""
  fields = Fields(body)
  messages = _read_messages(fields)
  newer = fields.whole("max_completion_tokens", 1, 2**31 - 1, None)
  num_tokens = fields.whole("max_tokens", 1, 2**31 - 1, newer)
  if newer not in (None, num_tokens):
    raise Refusal(
      400,
      f"max_tokens is {num_tokens} and max_completion_tokens {newer}; they are "
      "two names of one bound: leave one out",
      param="max_tokens",
    )
  has_log_probs = fields.switch("logprobs")
  num = fields.whole("top_logprobs", 0, NUM_LIKELIEST, 0)
  if num and not has_log_probs:
    raise Refusal(
      400, "top_logprobs needs logprobs, which is false", param="top_logprobs"
    )
  asked = Asked(
    prompts=[messages],
    num_tokens=num_tokens,
    num_choices=fields.whole("n", 1, MAX_CHOICES, 1),
    num_log_probs=num if has_log_probs else None,
    **_read_shared(fields, vocab_size),
  )
  fields.finish()
  return asked


def read_embedding(body: dict, vocab_size: int) -> tuple[list, bool]:
  """Returns (inputs of /v1/embeddings, whether vectors are sent as base64)."""
  fields = Fields(body)
  prompts = _read_prompts(fields, vocab_size, "input")
  form = fields.take(
    "encoding_format",
    lambda x: x in ("float", "base64"),
    "float or base64",
    "float",
  )
  fields.take("model", lambda x: isinstance(x, str), "a string", None)
  fields.finish()
  return prompts, form == "base64"


def read_classify(body: dict) -> list:
  """Returns the inputs of /v1/classify: texts, or tuples of two texts."""
  fields = Fields(body)
  is_text = lambda x: isinstance(x, str) and x.strip() != "" and is_unicode(x)
  is_pair = lambda x: (
    isinstance(x, list) and len(x) == 2 and all(map(is_text, x))
  )
  found = _read_inputs(
    fields,
    lambda x: is_text(x) or is_pair(x),
    f"a text, or a list of at most {MAX_PROMPTS} texts or pairs of texts, none "
    "empty",
  )
  fields.finish()
  return [one if isinstance(one, str) else tuple(one) for one in found]


def read_translate(body: dict, max_tokens: int) -> tuple[list[str], int]:
  """Returns (inputs of /v1/translate, most tokens of each target)."""
  fields = Fields(body)
  found = _read_inputs(
    fields,
    lambda x: isinstance(x, str) and x != "" and is_unicode(x),
    f"a text, or a list of at most {MAX_PROMPTS} texts, none empty",
  )
  num_tokens = fields.whole("max_tokens", 1, max_tokens, max_tokens)
  fields.finish()
  return found, num_tokens


def _read_inputs(fields: Fields, is_one: Callable, wanted: str) -> list:
  fields.take("model", lambda x: isinstance(x, str), "a string", None)
  is_list = lambda x: (
    isinstance(x, list) and 0 < len(x) <= MAX_PROMPTS and all(map(is_one, x))
  )
  is_single = lambda x: isinstance(x, str) and is_one(x)
  found = fields.take(
    "input", lambda x: is_single(x) or is_list(x), wanted, None
  )
  if found is None:
    raise Refusal(400, "input is missing", param="input")
  return [found] if isinstance(found, str) else found


def _read_shared(fields: Fields, vocab_size: int) -> dict:
  """Returns the fields of Asked that completions and chats share."""
  fields.take("model", lambda x: isinstance(x, str), "a string", None)
  sampling = Sampling(
    temperature=float(fields.number("temperature", 0, 2, 1.0)),
    top_k=fields.whole("top_k", 0, 2**31 - 1, 0),
    top_p=float(fields.number("top_p", 1e-6, 1, 1.0)),
    min_p=float(fields.number("min_p", 0, 1, 0.0)),
  )
  is_stream = fields.switch("stream")
  options = fields.take(
    "stream_options",
    lambda x: (
      isinstance(x, dict)
      and set(x) <= {"include_usage", "include_obfuscation"}
      and all(type(v) is bool for v in x.values())
    ),
    "an object with include_usage",
    {},
  )
  stop = fields.take("stop", _is_stop, _STOPS, [])
  return dict(
    sampling=sampling,
    seed=fields.whole("seed", -(2**63), 2**63 - 1, None),
    presence_penalty=float(fields.number("presence_penalty", -2, 2, 0)),
    frequency_penalty=float(fields.number("frequency_penalty", -2, 2, 0)),
    bias=_read_bias(fields, vocab_size),
    stop=(stop,) if isinstance(stop, str) else tuple(stop),
    is_stream=is_stream,
    has_usage=options.get("include_usage", False),
    schema=_read_format(fields),
  )


_STOPS = (
  f"a text of at most {MAX_STOP_CHARS} characters, or a list of at most "
  f"{MAX_STOPS} of them, none empty"
)


def _is_stop(value: Any) -> bool:
  texts = [value] if isinstance(value, str) else value
  return (
    isinstance(texts, list)
    and len(texts) <= MAX_STOPS
    and all(
      isinstance(t, str) and 0 < len(t) <= MAX_STOP_CHARS and is_unicode(t)
      for t in texts
    )
  )


def _read_format(fields: Fields) -> dict | None:
  """Returns the JSON schema of a text; None for any text."""
  name = "response_format"
  found = fields.take(name, lambda x: isinstance(x, dict), "an object", {})
  kind = found.get("type", "text")
  is_schema = kind == "json_schema"
  _refuse_others(found, {"type", *["json_schema"] * is_schema}, name)
  if kind == "text":
    return None
  if kind == "json_object":
    return {"type": "object"}
  if kind != "json_schema":
    raise Refusal(
      400,
      f"{name} has the type {show(kind)}; it must be text, json_object or "
      "json_schema",
      param=name,
    )
  inner = found.get("json_schema")
  schema = inner.get("schema") if isinstance(inner, dict) else None
  if isinstance(inner, dict):
    known = {"name", "description", "schema", "strict"}
    _refuse_others(inner, known, f"{name}.json_schema")
  if not isinstance(schema, dict):
    raise Refusal(
      400,
      f"{name} has no schema; json_schema must be an object with schema",
      param=name,
    )
  return schema


def _refuse_others(found: dict, known: set[str], name: str) -> None:
  """Refuses unknown keys, such as those of another API's schema."""
  others = sorted(found.keys() - known)
  if others:
    raise Refusal(
      400,
      f"{name} has {show(others[0])}, which is not read; it may have "
      f"{', '.join(sorted(known))}",
      param=name,
    )


def _read_bias(fields: Fields, vocab_size: int) -> dict[int, float]:
  def is_bias(value) -> bool:
    return (
      isinstance(value, dict)
      and len(value) <= MAX_BIASES
      and all(
        k.isascii()
        and k.isdecimal()
        and len(k) < 10
        and int(k) < vocab_size
        and is_number(v)
        and -100 <= v <= 100
        for k, v in value.items()
      )
    )

  wanted = (
    f"an object of at most {MAX_BIASES} ids below {vocab_size} and numbers "
    "from -100 to 100"
  )
  found = fields.take("logit_bias", is_bias, wanted, {})
  return {int(i): float(value) for i, value in found.items()}


def _read_prompts(fields: Fields, vocab_size: int, name="prompt") -> list:
  """Returns a list of texts, or of lists of ids."""
  is_text = lambda x: isinstance(x, str) and x != "" and is_unicode(x)
  is_id = lambda x: type(x) is int and 0 <= x < vocab_size
  is_ids = lambda x: isinstance(x, list) and bool(x) and all(map(is_id, x))

  def is_prompt(value) -> bool:
    if is_text(value) or is_ids(value):
      return True
    return (
      isinstance(value, list)
      and 0 < len(value) <= MAX_PROMPTS
      and (all(map(is_text, value)) or all(map(is_ids, value)))
    )

  found = fields.take(
    name,
    is_prompt,
    f"a text, a list of ids below {vocab_size}, or a list of at most "
    f"{MAX_PROMPTS} of either, none empty",
    None,
  )
  if found is None:
    raise Refusal(400, f"{name} is missing", param=name)
  is_one = isinstance(found, str) or isinstance(found[0], int)
  return [found] if is_one else found


def _read_messages(fields: Fields) -> tuple[Message, ...]:
  found = fields.take(
    "messages",
    lambda x: isinstance(x, list) and bool(x),
    "a list of messages",
    None,
  )
  if found is None:
    raise Refusal(400, "messages is missing", param="messages")
  messages = []
  for i, one in enumerate(found):
    at = f"messages[{i}]"
    if not isinstance(one, dict):
      raise Refusal(400, f"{at} is {show(one)}; it must be an object", param=at)
    role = one.get("role")
    roles = ("system", "developer", "user", "assistant")
    if role not in roles:
      raise Refusal(
        400,
        f"{at} has the role {show(role)}; it must be one of {', '.join(roles)}",
        param=at,
      )
    for name, value in one.items():
      # Clients send back an answer's message, with its null and empty fields.
      if name not in ("role", "content") and value not in (None, []):
        raise Refusal(
          400,
          f"{at} has {show(name)}, which is not read; a message is a role and "
          "a content",
          param=at,
        )
    content = one.get("content")
    if isinstance(content, list):
      content = join_parts(content)
    if not isinstance(content, str) or not is_unicode(content):
      raise Refusal(
        400, f"{at} has no content; it must be a text, or parts of it", param=at
      )
    role = "system" if role == "developer" else role
    messages.append(Message(role, content))
  try:
    check_turns(messages, "messages")
  except InputError as error:
    raise Refusal(400, error, param="messages") from None
  if messages[-1].role != "user":
    raise Refusal(
      400,
      f"messages ends with a turn of the {messages[-1].role}; the last must be "
      "the user's, to be answered",
      param="messages",
    )
  return tuple(messages)
