"""Opens a run as a server: its engine, its tokenizers, its name."""

import os
import time
from typing import Any

from gpt_jax import config as config_lib
from gpt_jax.config import InputError, Template
from gpt_jax.data.objectives import prompting
from gpt_jax.data.templates import ChatTokenizer
from gpt_jax.deploy.serve.answers import Served
from gpt_jax.deploy.serve.engine import Engine, NoRows
from gpt_jax.deploy.serve.grammar import Grammars
from gpt_jax.inference.drafter import Drafter
from gpt_jax.inference.pages import PAGE
from gpt_jax.inference.prompts import PromptTokenizer
from gpt_jax.inference.rows import Rows
from gpt_jax.runs import workdir


def open_draft(config, tokenizer, overrides: dict, say, args):
  """Returns (model, params) of the run of --draft; None without that flag.

  Args:
    config, tokenizer: of the run that is served.
    overrides: config overrides for both runs.

  Raises:
    InputError: the draft run has another tokenizer or fewer positions than the
      run that is served, or --drafts is 0.
  """
  if args.draft is None:
    return None
  if not args.drafts:
    raise InputError(
      "--draft names a run that guesses, and --drafts is 0; give the number of "
      "its guesses at each step, for instance --drafts=4"
    )
  own, model, params, other, _ = workdir.open_run(
    args.draft, overrides, say, args.weights
  )
  if other.fingerprint() != tokenizer.fingerprint():
    raise InputError(
      f"the run of --draft, {args.draft}, has another tokenizer than the run "
      "that is served; give one that was trained with the same"
    )
  if own.model.max_len < config.model.max_len:
    raise InputError(
      f"the run of --draft has {own.model.max_len} positions, and the run that "
      f"is served {config.model.max_len}; give one of as many"
    )
  return model, params


def build_engine(
  model, params, mesh, vocab_size: int, args, draft=None
) -> Engine:
  """Returns an engine, not started; a run that continues no texts has no rows.

  Args:
    args: flags of the command: rows, prefix_tokens, drafts, max_waiting.
    draft: from open_draft.
  """
  if not model.can_generate or config_lib.has_source(model.config):
    return Engine(NoRows, mesh, args.max_waiting)
  num_pages, sizes = args.prefix_tokens // PAGE, (args.rows, vocab_size)

  def make() -> Rows:
    drafter = None
    if draft is not None:
      drafter = Drafter(*draft, *sizes, num_pages, args.drafts)
    return Rows(model, params, *sizes, num_pages, args.drafts, drafter)

  return Engine(make, mesh, args.max_waiting)


def describe(where: str, config, model, tokenizer, args) -> Served:
  """Returns the Served of a run.

  Raises:
    InputError: the run was trained with prefixes, which serving does not read.
  """
  if config_lib.has_prefixes(config):
    raise InputError(
      f"data.objective is {config.data.objective}, whose prompts are read as "
      "prefixes, in one piece; gpt_jax.generate reads them, serve does not"
    )
  template = (
    None if args.template is None else Template(args.template, "--template")
  )
  if not model.can_generate:  # an encoder or a classifier
    plain: Any = tokenizer
    chat = None
  else:
    plain = prompting(config, tokenizer)
    chat = _chat_of(config, tokenizer, template)
  if isinstance(plain, ChatTokenizer):
    plain = tokenizer
  if plain is tokenizer and tokenizer.start_ids:
    plain = PromptTokenizer(tokenizer)
  vocab_size = min(config_lib.vocab_size(model.config), plain.vocab_size)
  return Served(
    name=args.name or os.path.basename(os.path.abspath(where)),
    created=int(time.time()),
    tokenizer=plain,
    chat=chat,
    grammars=Grammars(tokenizer),
    max_len=model.config.max_len - args.drafts,
    vocab_size=vocab_size,
    max_tokens=args.max_tokens or model.config.max_len,
    seconds=args.seconds,
  )


def _chat_of(config, tokenizer, template) -> ChatTokenizer | None:
  """Returns the tokenizer of dialogues, or None if the run cannot have one.

  Its template is --template, else the run's own, else ChatML.
  """
  if template is not None:
    return prompting(config, tokenizer, template)
  own = prompting(config, tokenizer)
  if isinstance(own, ChatTokenizer):
    return own
  if own is not tokenizer:  # its prompts are sources
    return None
  for word in ("chatml", "chatml:text"):
    try:
      return prompting(config, tokenizer, Template(word))
    except InputError:
      continue
  return None
