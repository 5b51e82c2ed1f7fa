"""Text token by token is the text of all tokens."""

import random

from gpt_jax.data.tokenizers.plain import ByteTokenizer
from gpt_jax.deploy.serve.speech import WINDOW, Speech
from gpt_jax.inference import texts

STOPS = ["ab", "xyz", "b", "é", "漢a", "\n\n"]


def test_pieces_are_the_text_that_all_tokens_give():
  tokenizer, rng = ByteTokenizer(), random.Random(0)
  num_stopped = num_long = 0
  for _ in range(400):
    prompt = list(("é漢a b\n" * rng.randint(1, 5)).encode())
    stop = tuple(rng.choice(STOPS) for _ in range(rng.randint(0, 2)))
    letters = rng.choice(["ab xyz\néé漢😀", "ac😀"])
    source = "".join(rng.choices(letters, k=rng.randint(0, 120))).encode()
    ids = [i if rng.random() > 0.02 else rng.randrange(257) for i in source]
    wanted = texts.cut_text(prompt, ids, tokenizer, stop)
    speech, shown = Speech(tokenizer, prompt, stop), ""
    for i in ids:
      speech.push(i)
      if speech.is_done:
        break
      shown += speech.take()
      assert wanted[0].startswith(shown)
    shown += speech.take(is_last=True)
    assert (shown, speech.is_done) == wanted
    num_stopped += speech.is_done
    num_long += len(wanted[0].encode()) > 2 * WINDOW
  assert num_stopped > 50 and num_long > 25  # the control: what was tried
