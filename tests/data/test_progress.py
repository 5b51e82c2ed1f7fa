"""Progress is shown without filling a log."""

from gpt_jax.data import progress
from gpt_jax.data.prepare import prepare_data

TEXTS = [f"document {i} says {'é' * i}\n" for i in range(40)]


def test_progress_is_a_short_line_where_there_is_no_terminal(
  corpus, monkeypatch
):
  monkeypatch.setattr(progress, "REPORT_SECONDS", 0.0)
  lines = []
  prepare_data(corpus(TEXTS, tokenizer="chars"), say=lines.append)
  assert len(lines) > 3
  assert all(len(line) < 100 for line in lines[:-1])
