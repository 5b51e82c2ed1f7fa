"""Held-out text that is also trained on is mentioned."""

from gpt_jax.data.prepare import prepare_data

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def test_text_on_both_sides_of_a_mixture_is_told(corpus, tmp_path):
  data = corpus(TEXTS, valid_frac=0.3)
  both = f"{data.source},text:{tmp_path}/te*/00*.txt"
  for changes in (
    {"source": both},
    {"valid_source": f"text:{tmp_path}/text/01*.txt"},
  ):
    for _ in range(2):
      lines = []
      prepare_data(corpus([], **changes), say=lines.append)
      assert "held-out documents are also in the text to train" in lines[-1]
