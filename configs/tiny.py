"""The quickstart: a small GPT that learns Python from the interpreter's text.

bash launch/local.sh
"""

from configs import base


def get_config():
  config = base.get_config()
  config.data.tokenizer = "bpe:2048"
  return config
