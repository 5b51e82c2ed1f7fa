"""Templates: ids as written out by hand, and a loss on answers alone."""

import numpy as np
import pytest

from gpt_jax.config import InputError, Template
from gpt_jax.data import templates
from gpt_jax.data.sources.chat import Chat, Message
from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.inference import texts

MESSAGES = (
  Message("system", "Be kind."),
  Message("user", "Hi\n"),
  Message("assistant", " Yes "),
  Message("user", "<|im_end|"),
  Message("assistant", "No"),
)
# What each template writes; what counts stands between [ and ].
WRITTEN = {
  "chatml": (
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n"
    "<|im_start|>assistant\n[ Yes <|im_end|>]\n<|im_start|>user\n<|im_end|"
    "<|im_end|>\n<|im_start|>assistant\n[No<|im_end|>]\n"
  ),
  "llama3": (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[Yes<|eot_id|>]"
    "<|start_header_id|>user<|end_header_id|>\n\n<|im_end|<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n[No<|eot_id|>]"
  ),
  "gemma": (
    "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>"
    "model\n[Yes<end_of_turn>]\n<start_of_turn>user\n<|im_end|<end_of_turn>\n"
    "<start_of_turn>model\n[No<end_of_turn>]\n"
  ),
}
MARKS = sorted({m for f in templates.FORMS.values() for m in f.marks})


class Marked(ByteTokenizer):
  """Bytes, and an id for each mark of all templates."""

  def id_of(self, mark):
    return 257 + MARKS.index(mark)


def by_hand(written: str, has_marks: bool) -> tuple[list[int], list[int]]:
  """Returns (ids, mask) of a text of WRITTEN."""
  ids, mask, counts = [], [], 0
  while written:
    if written[0] in "[]":
      counts, written = int(written[0] == "["), written[1:]
      continue
    mark = next((m for m in MARKS if written.startswith(m)), None)
    # A mark that content spells is no token of its own.
    if has_marks and mark is not None:
      ids, size = [*ids, 257 + MARKS.index(mark)], len(mark)
    else:
      ids, size = [*ids, ord(written[0])], 1
    mask.append(counts)
    written = written[size:]
  return ids, mask


def encode(name, tokenizer, messages=MESSAGES):
  encoder = templates.ChatEncoder(Template(name), tokenizer)
  ((_, ids, mask),) = encoder.encode_batch([Chat("a", "a.jsonl", messages)])
  return encoder, ids.tolist(), mask.tolist()


@pytest.mark.parametrize("name", templates.FORMS)
@pytest.mark.parametrize("has_marks", [True, False])
def test_ids_and_mask_are_those_counted_by_hand(name, has_marks):
  tokenizer = Marked() if has_marks else ByteTokenizer()
  asked = name if has_marks else f"{name}:text"
  encoder, ids, mask = encode(asked, tokenizer)
  assert (ids, mask) == by_hand(WRITTEN[name], has_marks)
  # The answers, each with the mark that ends it, are all that counts.
  end = 1 if has_marks else len(encoder.end)
  answers = len(" Yes No" if name == "chatml" else "YesNo")
  assert sum(mask) == answers + 2 * end


@pytest.mark.parametrize("name", templates.FORMS)
def test_a_prompt_is_what_stands_before_the_answer(name):
  encoder, ids, mask = encode(name, Marked())
  prompt = encoder.prompt(MESSAGES[:-1], "here").tolist()
  assert prompt == ids[: len(prompt)]
  assert mask[len(prompt)] == 1 and not mask[len(prompt) - 1]


def test_a_mark_that_content_spells_is_plain_text():
  message = Message("user", "<|im_end|>"), Message("assistant", "a")
  _, ids, _ = encode("chatml", Marked(), message)
  assert ids.count(257 + MARKS.index("<|im_end|>")) == 2
  with pytest.raises(InputError, match="a.jsonl holds '<|im_end|>', a mark"):
    encode("chatml:text", ByteTokenizer(), message)


def test_a_template_that_cannot_be_written_is_one_sentence():
  names = {Template(n).name for n in Template.FORMS}
  assert names == {*templates.FORMS, "tokenizer"}
  with pytest.raises(InputError, match="did you mean 'chatml'"):
    Template("chatlm")
  with pytest.raises(InputError, match="is no token of bytes; take"):
    templates.ChatEncoder(Template("gemma"), ByteTokenizer())


def test_a_chat_tokenizer_ends_where_a_turn_does():
  own = templates.ChatTokenizer(Marked(), Template("chatml"))
  end = 257 + MARKS.index("<|im_end|>")
  assert (own.separator_id, own.stop, own.start_ids) == (end, (), ())
  messages = MESSAGES[1:3]
  _, ids, mask = encode("chatml", Marked(), messages)
  answer = own.encode_target(" Yes ")
  asked = own.encode("Hi\n")
  assert np.concatenate([asked, answer]).tolist() == ids[:-1]
  assert mask == [0] * len(asked) + [1] * len(answer) + [0]
  spelled = templates.ChatTokenizer(ByteTokenizer(), Template("chatml:text"))
  assert spelled.stop == ("<|im_end|>",) and spelled.separator_id == 256
  assert spelled.decode(spelled.encode_target("A")) == "A<|im_end|>"


def test_an_answer_ends_with_its_turn_or_with_all_that_is_said():
  own = templates.ChatTokenizer(Marked(), Template("chatml"))
  end, plain = own.separator_id, ByteTokenizer().separator_id
  for last in (end, plain):
    assert texts.cut_text([65], [66, last, 67], own) == ("B", True)
  spelled = templates.ChatTokenizer(ByteTokenizer(), Template("chatml:text"))
  ids = [*b"B<|im_end|>C"]
  assert texts.cut_text([65], ids, spelled) == ("B", True)
  assert texts.cut_text([65], ids[:-2], spelled) == ("B<|im_end|", False)
