"""JSON of a schema in vocabularies that put a space before a text."""

import json
import pathlib

import numpy as np
import pytest

from gpt_jax.data import tokenizers

pytest.importorskip("llguidance", reason="extra grammar is not installed")

from gpt_jax.deploy.serve.grammar import Grammars
from gpt_jax.deploy.serve.speech import find_offsets

FILES = pathlib.Path(__file__).parents[1] / "hf" / "kinds.json"
KINDS = json.loads(FILES.read_text())


@pytest.mark.parametrize("kind", ["llama2", "mistral", "gemma", "gpt2"])
@pytest.mark.parametrize("word", ["a red cat", "né", "a   b"])
def test_a_text_of_any_vocabulary_is_of_its_schema(kind, word, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(KINDS[kind]["tokenizer"]))
  ours = tokenizers.build_tokenizer(f"hf:{path}").with_start()
  schema = {
    "type": "object",
    "properties": {"it": {"enum": [word]}},
    "required": ["it"],
    "additionalProperties": False,
  }
  matcher = Grammars(ours).matcher(schema)
  mask = np.zeros((ours.vocab_size + 31) // 32, np.uint32)
  # What is written follows a prompt.
  prompt = ours.encode("x").tolist()
  ids: list[int] = []
  while not matcher.is_done and len(ids) < 60:
    matcher.fill(mask)
    may = np.unpackbits(mask.view(np.uint8), bitorder="little")
    found = [i for i in may.nonzero()[0] if i != ours.separator_id]
    if not found:
      break
    ids.append(int(found[len(ids) % len(found)]))
    matcher.push(ids[-1])
    assert not matcher.is_lost
  text = ours.decode(prompt + ids).removeprefix(ours.decode(prompt))
  assert text == f'{{"it":"{word}"}}'


@pytest.mark.parametrize("kind", ["llama2", "gemma", "gpt2"])
@pytest.mark.parametrize("text", ["a 國 red cat", " a  red cat"])
def test_each_token_begins_where_its_text_does(kind, text, tmp_path):
  path = tmp_path / "tokenizer.json"
  path.write_text(json.dumps(KINDS[kind]["tokenizer"]))
  ours = tokenizers.build_tokenizer(f"hf:{path}").with_start()
  ids = [*ours.start_ids, *ours.encode(text).tolist()]
  offsets = find_offsets(ours, ids, text)
  assert offsets[: len(ours.start_ids) + 1] == [0] * (len(ours.start_ids) + 1)
  drawn = ours.encode("a 國").tolist()
  spelled = b"".join(map(ours.spell, drawn)).decode("utf-8")
  assert find_offsets(ours, drawn, "")[-1] == len(spelled) - 1
  for i, at in list(zip(ids, offsets, strict=True))[len(ours.start_ids) + 1 :]:
    data = ours.spell(i)
    spelled = data.decode("utf-8", errors="ignore")
    assert text[at:].startswith(spelled or "國"), (i, at)


def test_a_token_that_may_not_come_loses_the_text():
  ours = tokenizers.build_tokenizer("bytes")
  matcher = Grammars(ours).matcher({"type": "object"})
  matcher.push(ord("x"))
  assert matcher.is_lost
